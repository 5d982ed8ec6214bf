-- TAKE: the contiguous next ops of the named runs, up to a budget, bodies inline.
-- ARGV: worker max_tokens run...
-- Answers {run, epoch, status, {request, seq, kind, tokens, body, ...}} per run that is still ours.
-- status: 'idle' nothing waits; 'more' the budget ended first; 'gap' ops wait behind a missing seq.
local worker, budget = ARGV[1], tonumber(ARGV[2])
local answer = {}
for index = 3, #ARGV do
  local run = ARGV[index]
  local at = redis.call('HMGET', 'run:' .. run, 'owner', 'epoch', 'claimed', 'done')
  if at[1] == worker then
    local claimed, done, jobs, status = tonumber(at[3]), tonumber(at[4]), {}, 'idle'
    while true do
      local request = run .. ':' .. string.format('%d', claimed + 1)
      local future = redis.call('HMGET', 'fut:' .. request, 'state', 'kind', 'tokens')
      if not future[1] then
        if done == claimed and redis.call('ZCARD', 'q:' .. run) > 0 then status = 'gap' end
        break
      elseif future[1] == 'failed' then -- a tombstone: step over it
        claimed = claimed + 1
        redis.call('ZREM', 'q:' .. run, request)
        redis.call('PEXPIRE', 'fut:' .. request, 21600000)
        if done == claimed - 1 then done = claimed end
      elseif budget <= 0 then
        status = 'more'
        break
      else
        claimed = claimed + 1
        budget = budget - math.max(tonumber(future[3]), 1)
        for _, value in ipairs({request, claimed, future[2], future[3],
                                redis.call('GET', 'pl:' .. request) or ''}) do
          jobs[#jobs + 1] = value
        end
      end
    end
    redis.call('HSET', 'run:' .. run, 'claimed', claimed, 'done', done)
    answer[#answer + 1] = {run, tonumber(at[2]), status, jobs}
  end
end
return answer
