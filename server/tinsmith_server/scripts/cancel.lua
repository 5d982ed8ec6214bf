-- CANCEL a sampling job: its future fails now, and the worker that holds it is told to free the slot.
-- ARGV: request result ttl_ms
local request, result, ttl = ARGV[1], ARGV[2], ARGV[3]
local at = redis.call('HMGET', 'fut:' .. request, 'state', 'kind', 'run', 'clone')
if at[1] ~= 'waiting' or at[2] ~= 'sample' then return 0 end
local list = 'comp:' .. at[3] .. ':' .. at[4]
release('fut:' .. request)
redis.call('ZREM', 'q:' .. at[3], request)
redis.call('HSET', 'fut:' .. request, 'state', 'failed', 'content', 'json')
redis.call('PEXPIRE', 'fut:' .. request, ttl)
redis.call('SET', 'res:' .. request, result, 'PX', ttl)
redis.call('DEL', 'pl:' .. request)
redis.call('RPUSH', list, 'failed ' .. #result .. ' ' .. request)
redis.call('PEXPIRE', list, ttl)
redis.call('XADD', 'done', 'MAXLEN', '~', 100000, '*', 'request', request, 'kind', 'sample')
redis.call('XADD', 'ctl', 'MAXLEN', '~', 10000, '*', 'cancel', request)
return 1
