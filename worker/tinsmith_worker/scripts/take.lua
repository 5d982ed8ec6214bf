-- TAKE: the contiguous next ops of the named runs, bodies inline, up to a budget of tokens each.
-- ARGV: worker max_tokens, then for each run: run epoch last
-- `last` is the seq up to which the worker has taken the run under that epoch. So an answer that was
-- lost on its way is given again; and under another epoch, all that has no result is.
-- Answers {run, epoch, status, tenant, base_model, last, {request, seq, kind, tokens, body, origin, at, ...}} of each
-- run that is the worker's. status: 'idle' nothing waits; 'more' the budget ended first; 'gap' ops wait
-- behind a missing seq.
local worker, answer = ARGV[1], {}
for index = 3, #ARGV, 3 do
  local run, budget = ARGV[index], tonumber(ARGV[2])
  local at = redis.call('HMGET', 'run:' .. run, 'owner', 'epoch', 'done', 'tenant', 'base_model')
  if at[1] == worker then
    local done, jobs, status = tonumber(at[3]), {}, 'idle'
    local last = at[2] == ARGV[index + 1] and math.max(done, tonumber(ARGV[index + 2])) or done
    if last > done and redis.call('EXISTS', 'fut:' .. run .. ':' .. string.format('%d', done + 1)) == 0 then
      -- What the worker has taken is lost here: it begins again from what is not.
      at[2], last = redis.call('HINCRBY', 'run:' .. run, 'epoch', 1), done
    end
    while true do
      local request = run .. ':' .. string.format('%d', last + 1)
      local future = redis.call('HMGET', 'fut:' .. request, 'state', 'kind', 'tokens', 'origin', 'at')
      if not future[1] then
        if done == last and redis.call('ZCARD', 'q:' .. run) > 0 then status = 'gap' end
        break
      elseif future[1] == 'failed' then -- a tombstone: step over it
        last = last + 1
        redis.call('ZREM', 'q:' .. run, request)
        redis.call('PEXPIRE', 'fut:' .. request, 21600000)
        if done == last - 1 then done = last end
      elseif budget <= 0 then
        status = 'more'
        break
      else
        last = last + 1
        budget = budget - math.max(tonumber(future[3]), 1)
        for _, value in ipairs({request, last, future[2], future[3],
                                redis.call('GET', 'pl:' .. request) or '', future[4] or '', future[5] or 0}) do
          jobs[#jobs + 1] = value
        end
      end
    end
    redis.call('HSET', 'run:' .. run, 'claimed', last, 'done', done)
    answer[#answer + 1] = {run, tonumber(at[2]), status, at[4], at[5], last, jobs}
  end
end
return answer
