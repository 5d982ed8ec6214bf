-- LOOK at a future. ARGV: request
-- Answers {tenant, kind, state, content, result}, or nil when it is unknown. result: nil until done.
local request = ARGV[1]
local at = redis.call('HMGET', 'fut:' .. request, 'tenant', 'kind', 'state', 'content')
if not at[3] then return nil end
if at[3] ~= 'waiting' then at[5] = redis.call('GET', 'res:' .. request) end
return at
