-- LOOK at a future. ARGV: request tenant
-- Answers {tenant, kind, state, content, result}, or nil when it is unknown. result: nil until done.
-- Its tenant's looking is a sign of life of the session; no tenant, no sign.
local request = ARGV[1]
local at = redis.call('HMGET', 'fut:' .. request, 'tenant', 'kind', 'state', 'content')
if not at[3] then return nil end
if at[3] ~= 'waiting' then
  at[5] = redis.call('GET', 'res:' .. request)
elseif at[1] == ARGV[2] then
  redis.call('ZADD', 'beats', 'XX', redis.call('TIME')[1], string.match(request, '^[^:]*'))
end
return at
