-- SNAP: the store holds the run as it was after `seq`; what came before need not be replayed.
-- ARGV: worker epoch run snapshot seq
-- Answers the snapshot that this one replaces, or nil when fenced.
local worker, epoch, run, snapshot, seq = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local at = redis.call('HMGET', 'run:' .. run, 'owner', 'epoch', 'snapshot')
if at[1] ~= worker or at[2] ~= epoch then return nil end
local now = redis.call('TIME')
redis.call('HSET', 'run:' .. run, 'snapshot', snapshot, 'snapshot_seq', seq,
  'snapshot_at', string.format('%d%06d', now[1], now[2]))
while true do
  local entry = redis.call('LINDEX', 'log:' .. run, 0)
  if not entry then break end
  local request = string.match(entry, '^(%S+) ')
  if tonumber(string.match(request, ':(%d+)$')) > seq then break end
  redis.call('LPOP', 'log:' .. run)
  redis.call('DEL', 'pl:' .. request)
end
return at[3]
