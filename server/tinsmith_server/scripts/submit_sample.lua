-- SUBMIT of a sampling job: any worker of the base model may take it, in any order.
-- ARGV: request session tenant base_model clone body state content result ttl_ms
local request, session, tenant, base, clone = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local body, state, content, result, ttl = ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local future = 'fut:' .. request
if redis.call('EXISTS', future) == 1 then return 'known' end
local now = redis.call('TIME')
redis.call('HSET', future, 'at', string.format('%d%06d', now[1], now[2]), 'tenant', tenant, 'run', session, 'kind', 'sample', 'clone', clone,
  'state', state, 'content', content)
if state == 'failed' then
  local list = 'comp:' .. session .. ':' .. clone
  redis.call('SET', 'res:' .. request, result, 'PX', ttl)
  redis.call('PEXPIRE', future, ttl)
  redis.call('RPUSH', list, 'failed ' .. #result .. ' ' .. request)
  redis.call('PEXPIRE', list, ttl)
  redis.call('XADD', 'done', 'MAXLEN', '~', 100000, '*', 'request', request, 'kind', 'sample')
else
  redis.call('SET', 'pl:' .. request, body)
  redis.call('XADD', 'smp:' .. base, '*', 'request', request)
  redis.call('RPUSH', 'bell:' .. base, 1)
  redis.call('LTRIM', 'bell:' .. base, 0, 15)
end
return 'new'
