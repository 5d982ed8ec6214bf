-- RESCUE: sampling jobs that dead workers held wait again, before the others of their tenants.
-- ARGV: base_model. Answers how many.
local base, rescued = ARGV[1], 0
local ring = 'smp:' .. base
for _, worker in ipairs(redis.call('SMEMBERS', 'samplers:' .. base)) do
  if redis.call('EXISTS', 'lease:' .. worker) == 0 then
    local held = 'held:' .. worker .. ':' .. base
    for _, request in ipairs(redis.call('SMEMBERS', held)) do
      local at = redis.call('HMGET', 'fut:' .. request, 'state', 'tenant')
      if at[1] == 'waiting' then
        redis.call('LPUSH', ring .. ':of:' .. at[2], request)
        if redis.call('HSETNX', ring .. ':balance', at[2], 0) == 1 then
          redis.call('LPUSH', ring, at[2])
        end
        rescued = rescued + 1
      end
    end
    redis.call('DEL', held)
    redis.call('SREM', 'samplers:' .. base, worker)
  end
end
return rescued
