-- SUBMIT of a sampling job: any worker of the base model may take it; tenants take turns.
-- ARGV: request session tenant base_model clone seq tokens width body state content result ttl_ms
-- origin, scopes' rows. width: sequences that it draws.
-- Answers 'new', 'known', or why not now: {scope, what, limit, wait_ms}.
local request, session, tenant, base, clone = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local seq, tokens, width, body = ARGV[6], tonumber(ARGV[7]), ARGV[8], ARGV[9]
local state, content, result, ttl, origin = ARGV[10], ARGV[11], ARGV[12], ARGV[13], ARGV[14]
local future = 'fut:' .. request
if redis.call('EXISTS', future) == 1 then return 'known' end
local why = refusal(15, #body, tokens, true, false)
if why then return why end
redis.call('HSET', future, 'at', string.format('%d', moment()), 'tenant', tenant, 'run', session,
  'kind', 'sample', 'clone', clone, 'tokens', tokens, 'width', width,
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
  redis.call('HSET', future, 'bytes', #body, 'origin', origin, 'scopes', charge(15, #body, tokens, true))
  redis.call('ZADD', 'q:' .. session, seq, request)
  local ring, balance = 'smp:' .. base, 'smp:' .. base .. ':balance'
  if redis.call('RPUSH', 'smp:' .. base .. ':of:' .. tenant, request) == 1
    and redis.call('HSETNX', balance, tenant, 0) == 1 then
    redis.call('LPUSH', ring, tenant) -- who had nothing waiting is next
  end
  redis.call('RPUSH', 'bell:' .. base, 1)
  redis.call('LTRIM', 'bell:' .. base, 0, 15)
end
heard(session)
return 'new'
