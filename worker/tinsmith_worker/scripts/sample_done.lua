-- DONE of a sampling job. The first result stands; a repeat changes nothing.
-- ARGV: worker base_model request failed content result ttl_ms prefill cached sampled
-- The last three are tokens, counted by hour, organization, session, kind and base model.
local worker, base, request, failed = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local content, result, ttl, future = ARGV[5], ARGV[6], ARGV[7], 'fut:' .. ARGV[3]
redis.call('SREM', 'held:' .. worker .. ':' .. base, request)
local at = redis.call('HMGET', future, 'state', 'run', 'clone', 'tenant')
if at[1] ~= 'waiting' then return 'known' end
local state, list = failed == '1' and 'failed' or 'done', 'comp:' .. at[2] .. ':' .. at[3]
redis.call('DEL', 'pl:' .. request)
redis.call('ZREM', 'q:' .. at[2], request)
release(future)
redis.call('SET', 'res:' .. request, result, 'PX', ttl)
redis.call('HSET', future, 'state', state, 'content', content)
redis.call('PEXPIRE', future, ttl)
redis.call('RPUSH', list, state .. ' ' .. #result .. ' ' .. request)
redis.call('PEXPIRE', list, ttl)
redis.call('XADD', 'done', 'MAXLEN', '~', 100000, '*', 'request', request, 'kind', 'sample')
local session = string.match(at[2], '^[^:]*')
local second = tonumber(redis.call('TIME')[1])
local whose = (second - second % 3600) .. '|' .. at[4] .. '|' .. session .. '|'
local kinds = { 'sampling_prefill', 'sampling_prefill_cached', 'sampling_sample' }
for index, kind in ipairs(kinds) do
  local tokens = tonumber(ARGV[7 + index])
  if tokens > 0 then redis.call('HINCRBY', 'usage', whose .. kind .. '|' .. base, tokens) end
end
trace(session, future, 'sample', request, ARGV[8] + ARGV[9] + ARGV[10])
return 'new'
