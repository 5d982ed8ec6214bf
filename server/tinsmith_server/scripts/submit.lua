-- SUBMIT: put one op into its run's line, once. A resent op changes nothing.
-- ARGV: request run seq kind tenant base_model tokens body state content result ttl_ms
-- Answers 'new', 'known' or 'norun'. state is 'waiting', or 'failed' for a tombstone: an op that was
-- refused after its seq was known, kept in line so that later ones do not wait for it for ever.
local request, run, seq = ARGV[1], ARGV[2], tonumber(ARGV[3])
local kind, tenant, base, tokens, body = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local state, content, result, ttl = ARGV[9], ARGV[10], ARGV[11], ARGV[12]
local runkey, future = 'run:' .. run, 'fut:' .. request

if redis.call('EXISTS', future) == 1 then return 'known' end
local at = redis.call('HMGET', runkey, 'owner', 'done')
local owner, done = at[1], at[2]
if owner then
  if seq <= tonumber(done) then return 'known' end
else
  if seq ~= 0 then return 'norun' end
  owner = '-' .. base
  for _, worker in ipairs(redis.call('ZRANGE', 'workers:' .. base, 0, -1)) do
    if redis.call('EXISTS', 'lease:' .. worker) == 1 then
      owner = worker
      redis.call('ZINCRBY', 'workers:' .. base, 1, worker)
      break
    end
  end
  redis.call('HSET', runkey, 'tenant', tenant, 'base_model', base, 'owner', owner, 'epoch', 1,
    'claimed', -1, 'done', -1, 'snapshot', '', 'snapshot_seq', -1)
  redis.call('SADD', 'owned:' .. owner, run)
end
local now = redis.call('TIME')
redis.call('HSET', future, 'at', string.format('%d%06d', now[1], now[2]), 'tenant', tenant, 'run', run, 'seq', seq, 'kind', kind,
  'tokens', tokens, 'state', state, 'content', content)
redis.call('ZADD', 'q:' .. run, seq, request)
if state == 'failed' then
  redis.call('SET', 'res:' .. request, result, 'PX', ttl)
else
  redis.call('SET', 'pl:' .. request, body)
end
redis.call('RPUSH', 'inbox:' .. owner, run)
redis.call('PEXPIRE', 'inbox:' .. owner, 3600000)
return 'new'
