-- END a run: it takes no more, and nothing of it is kept here but the results that it gave.
-- ARGV: run. Answers the snapshot that the store may drop, or nil when there was no such run.
local run = ARGV[1]
local at = redis.call('HMGET', 'run:' .. run, 'owner', 'base_model', 'scopes', 'snapshot')
if not at[1] then return nil end
for scope in string.gmatch(at[3] or '', '%S+') do redis.call('SREM', 'runs:' .. scope, run) end
if redis.call('SREM', 'owned:' .. at[1], run) == 1
  and redis.call('ZSCORE', 'workers:' .. at[2], at[1]) then
  redis.call('ZINCRBY', 'workers:' .. at[2], -1, at[1])
end
redis.call('SREM', 'owned:-' .. at[2], run)
for _, entry in ipairs(redis.call('LRANGE', 'log:' .. run, 0, -1)) do
  redis.call('DEL', 'pl:' .. string.match(entry, '^(%S+) '))
end
redis.call('DEL', 'run:' .. run, 'q:' .. run, 'log:' .. run, 'slot:' .. run, 'noted:' .. run, 'step:' .. run)
redis.call('XADD', 'ctl', 'MAXLEN', '~', 10000, '*', 'leave', run)
return at[4]
