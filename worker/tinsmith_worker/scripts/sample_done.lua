-- DONE of a sampling job. The first result stands; a repeat changes nothing.
-- ARGV: worker base_model request failed content result ttl_ms prefill cached sampled
-- The last three are tokens, counted by hour, organization, session, kind and base model.
local worker, base, request, failed = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local content, result, ttl = ARGV[5], ARGV[6], ARGV[7]
redis.call('SREM', 'held:' .. worker .. ':' .. base, request)
local at = redis.call('HMGET', 'fut:' .. request, 'state', 'run', 'clone', 'tenant', 'at')
if at[1] ~= 'waiting' then return 'known' end
redis.call('DEL', 'pl:' .. request)
redis.call('ZREM', 'q:' .. at[2], request)
release('fut:' .. request)
local state, list = failed == '1' and 'failed' or 'done', 'comp:' .. at[2] .. ':' .. at[3]
redis.call('SET', 'res:' .. request, result, 'PX', ttl)
redis.call('HSET', 'fut:' .. request, 'state', state, 'content', content)
redis.call('PEXPIRE', 'fut:' .. request, ttl)
redis.call('RPUSH', list, state .. ' ' .. #result .. ' ' .. request)
redis.call('PEXPIRE', list, ttl)
redis.call('XADD', 'done', 'MAXLEN', '~', 100000, '*', 'request', request, 'kind', 'sample')
local now, session = redis.call('TIME'), string.match(at[2], '^[^:]*')
local second = tonumber(now[1])
local whose = (second - second % 3600) .. '|' .. at[4] .. '|' .. session .. '|'
local kinds = { 'sampling_prefill', 'sampling_prefill_cached', 'sampling_sample' }
for index, kind in ipairs(kinds) do
  local tokens = tonumber(ARGV[7 + index])
  if tokens > 0 then redis.call('HINCRBY', 'usage', whose .. kind .. '|' .. base, tokens) end
end
local tokens = ARGV[8] + ARGV[9] + ARGV[10]
trace(session, 'sample', request, 'fut:' .. request, now, tokens)
live(at[4], 's', at[5], now, tokens, failed == '1')
return 'new'
