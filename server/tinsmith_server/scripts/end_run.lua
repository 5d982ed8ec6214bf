-- END a run: it takes no more, and nothing of it is kept here but the results that it gave.
-- What came in since its line was cancelled fails with the rest, or nothing would ever let go of it.
-- ARGV: run result ttl_ms. Answers the snapshot that the store may drop, or nil when there was no such run.
local run, result, ttl = ARGV[1], ARGV[2], ARGV[3]
local at = redis.call('HMGET', 'run:' .. run, 'owner', 'base_model', 'scopes', 'snapshot')
if not at[1] then return nil end
for scope in string.gmatch(at[3] or '', '%S+') do redis.call('SREM', 'runs:' .. scope, run) end
if redis.call('SREM', 'owned:' .. at[1], run) == 1
  and redis.call('ZSCORE', 'workers:' .. at[2], at[1]) then
  redis.call('ZINCRBY', 'workers:' .. at[2], -1, at[1])
end
redis.call('SREM', 'owned:-' .. at[2], run)
for _, request in ipairs(redis.call('ZRANGE', 'q:' .. run, 0, -1)) do
  local future = 'fut:' .. request
  local about = redis.call('HMGET', future, 'state', 'kind')
  if about[1] == 'waiting' then
    release(future)
    redis.call('HSET', future, 'state', 'failed', 'content', 'json')
    redis.call('SET', 'res:' .. request, result, 'PX', ttl)
    redis.call('DEL', 'pl:' .. request)
    redis.call('XADD', 'done', 'MAXLEN', '~', 100000, '*', 'request', request, 'kind', about[2])
  end
  redis.call('PEXPIRE', future, ttl) -- a tombstone's, too, that no worker has stepped over
end
for _, entry in ipairs(redis.call('LRANGE', 'log:' .. run, 0, -1)) do
  redis.call('DEL', 'pl:' .. string.match(entry, '^(%S+) '))
end
redis.call('DEL', 'run:' .. run, 'q:' .. run, 'log:' .. run, 'slot:' .. run, 'noted:' .. run, 'step:' .. run)
redis.call('XADD', 'ctl', 'MAXLEN', '~', 10000, '*', 'leave', run)
return at[4]
