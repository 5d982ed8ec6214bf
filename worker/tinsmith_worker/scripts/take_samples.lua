-- TAKE of sampling jobs: deficit round-robin over the tenants that have some waiting, each charged
-- after its turn with the tokens of what it got.
-- ARGV: worker base_model room quantum. Answers {request, body, origin, at, ...}: as many as fill so many places,
-- by the sequences that each draws; the last may need more than are left.
local worker, base, room, quantum = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local ring = 'smp:' .. base
local dearest = 64 * quantum -- or a request for millions of tokens would go round the ring for seconds
local balance, held = ring .. ':balance', 'held:' .. worker .. ':' .. base
local jobs = {}
while room > 0 do
  local tenant = redis.call('LINDEX', ring, 0)
  if not tenant then break end
  local left = tonumber(redis.call('HGET', balance, tenant))
  local request = left > 0 and redis.call('LPOP', ring .. ':of:' .. tenant)
  if left <= 0 then
    redis.call('HINCRBY', balance, tenant, quantum)
    redis.call('LMOVE', ring, ring, 'LEFT', 'RIGHT')
  elseif not request then -- nothing is saved up for later
    redis.call('LPOP', ring)
    redis.call('HDEL', balance, tenant)
  else
    local at = redis.call('HMGET', 'fut:' .. request, 'state', 'tokens', 'width', 'origin', 'at')
    local body = redis.call('GET', 'pl:' .. request)
    if at[1] == 'waiting' and body then
      redis.call('HINCRBY', balance, tenant, -math.min(math.max(tonumber(at[2]), 1), dearest))
      redis.call('SADD', held, request)
      room = room - at[3]
      for _, value in ipairs({request, body, at[4] or '', at[5] or 0}) do jobs[#jobs + 1] = value end
    end
  end
end
if #jobs > 0 then redis.call('SADD', 'samplers:' .. base, worker) end
return jobs
