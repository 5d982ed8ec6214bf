-- SUBMIT: put one op into its run's line, once. A resent op changes nothing.
-- ARGV: request run seq kind tenant base_model tokens body state content result ttl_ms
-- origin, scopes' rows
-- Answers 'new', 'known', 'norun', 'ahead', or why not now: {scope, what, limit, wait_ms}.
-- state is 'waiting', or 'failed' for a tombstone: an op that was refused after its seq was known,
-- kept in line so that later ones do not wait for it for ever.
local request, run, seq = ARGV[1], ARGV[2], tonumber(ARGV[3])
local kind, tenant, base, tokens, body = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local state, content, result, ttl, origin = ARGV[9], ARGV[10], ARGV[11], ARGV[12], ARGV[13]
local runkey, future, line = 'run:' .. run, 'fut:' .. request, 'q:' .. run

if redis.call('EXISTS', future) == 1 then return 'known' end
local at = redis.call('HMGET', runkey, 'owner', 'done')
local owner, done = at[1], tonumber(at[2] or -1)
if owner and seq <= done then return 'known' end
if not owner and seq ~= 0 then return 'norun' end
if seq > done + 20000 then return 'ahead' end -- closing the gap would hold up everybody
-- An op that others of its run wait behind is never refused: those could not end before it.
if seq ~= done + 1 or redis.call('ZCARD', line) == 0 then
  local why = refusal(14, #body, tonumber(tokens), false, not owner)
  if why then return why end
end
if not owner then
  owner = '-' .. base
  for _, worker in ipairs(redis.call('ZRANGE', 'workers:' .. base, 0, -1)) do
    if redis.call('EXISTS', 'lease:' .. worker) == 1 then
      owner = worker
      redis.call('ZINCRBY', 'workers:' .. base, 1, worker)
      break
    end
  end
  local scopes = {}
  for row = 14, #ARGV, WIDTH do
    scopes[#scopes + 1] = ARGV[row]
    if ARGV[row] ~= 'run:' .. run then redis.call('SADD', 'runs:' .. ARGV[row], run) end
  end
  redis.call('HSET', runkey, 'tenant', tenant, 'base_model', base, 'owner', owner, 'epoch', 1,
    'claimed', -1, 'done', -1, 'snapshot', '', 'snapshot_seq', -1, 'scopes', table.concat(scopes, ' '))
  redis.call('SADD', 'owned:' .. owner, run)
end
redis.call('HSET', future, 'at', string.format('%d', moment()), 'tenant', tenant, 'run', run, 'seq', seq,
  'kind', kind, 'tokens', tokens, 'state', state, 'content', content)
redis.call('ZADD', line, seq, request)
if state == 'failed' then
  redis.call('SET', 'res:' .. request, result, 'PX', ttl)
else
  redis.call('SET', 'pl:' .. request, body)
  redis.call('HSET', future, 'bytes', #body, 'origin', origin, 'scopes', charge(14, #body, tonumber(tokens), false))
end
heard(run)
redis.call('RPUSH', 'inbox:' .. owner, run)
redis.call('PEXPIRE', 'inbox:' .. owner, 3600000)
return 'new'
