-- RETAKE: a worker that lost touch with us begins anew with its runs: what it claimed waits again, under a
-- new epoch, for the answer to a TAKE or an ADOPT may have been lost on its way.
-- ARGV: worker. Answers {run, epoch, done} of each.
local worker, answer = ARGV[1], {}
for _, run in ipairs(redis.call('SMEMBERS', 'owned:' .. worker)) do
  local at = redis.call('HMGET', 'run:' .. run, 'owner', 'epoch', 'done')
  if at[1] == worker then
    local epoch = tonumber(at[2]) + 1
    redis.call('HSET', 'run:' .. run, 'epoch', epoch, 'claimed', at[3])
    answer[#answer + 1] = {run, epoch, tonumber(at[3])}
  end
end
return answer
