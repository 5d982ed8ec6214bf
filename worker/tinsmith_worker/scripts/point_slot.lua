-- POINT a run's inflight samplers at newer weights. ARGV: run seq folder
-- A run that has ended has none: nobody would delete it again.
local key = 'slot:' .. ARGV[1]
if redis.call('EXISTS', 'run:' .. ARGV[1]) == 0 then return end
if tonumber(redis.call('HGET', key, 'seq') or -1) < tonumber(ARGV[2]) then
  redis.call('HSET', key, 'seq', ARGV[2], 'folder', ARGV[3])
end
