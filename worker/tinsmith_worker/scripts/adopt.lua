-- ADOPT: become a run's home, only if its last home is gone. What that one had claimed waits again.
-- ARGV: worker run. Answers the new epoch, or nil.
local worker, run = ARGV[1], ARGV[2]
local at = redis.call('HMGET', 'run:' .. run, 'owner', 'epoch', 'done', 'base_model')
if not at[1] or at[1] == worker or redis.call('EXISTS', 'lease:' .. at[1]) == 1 then return nil end
local epoch = tonumber(at[2]) + 1
local now = redis.call('TIME')
redis.call('HSET', 'run:' .. run, 'owner', worker, 'epoch', epoch, 'claimed', at[3],
  'adopted_at', string.format('%d%06d', now[1], now[2]))
redis.call('SREM', 'owned:' .. at[1], run)
redis.call('SREM', 'owned:-' .. at[4], run) -- where a worker that withdrew has left it
redis.call('SADD', 'owned:' .. worker, run)
redis.call('ZINCRBY', 'workers:' .. at[4], 1, worker)
if string.sub(at[1], 1, 1) ~= '-' then -- not the first home of a run that had none yet
  redis.call('XADD', 'steps', 'MAXLEN', '~', 1000000, '*', 'run', run, 'epoch', epoch, 'worker', worker)
end
return epoch
