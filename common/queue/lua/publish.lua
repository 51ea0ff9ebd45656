---- the ends of an attempt ----

local function lost(id, worker)
    return fail('LEASE_LOST', 'worker ' .. worker .. ' no longer holds job ' .. id .. '; its result is dropped')
end

-- The means beside a model's cost; nothing if there are none.
local function fit_of(s)
    local n, nn, nc = string.match(s or '', '^(%S+) (%S+) (%S+)$')
    return tonumber(n or ''), tonumber(nn or ''), tonumber(nc or '')
end

-- The mean that a job of a model takes, for the charge of the next ones; and beside it three more means, of the
-- number of phrases, of its square, and of its product with the time: from these a line is drawn (see estimate.lua).
local function learn_cost(p, costs)
    for model, c in pairs(costs) do
        local v = redis.call('HMGET', p .. 'cost', model, model .. '/phrases')
        local old, rate = tonumber(v[1] or '0'), 1
        local n, nn, nc = fit_of(v[2])
        if old > 0 then rate = math.min(0.5, c.n / 64) end
        local function mean(before, sum) return before + (sum / c.n - before) * rate end
        local first = not n or old <= 0
        local m = first and { c.phrases / c.n, c.squares / c.n, c.products / c.n } or
            { mean(n, c.phrases), mean(nn, c.squares), mean(nc, c.products) }
        redis.call('HSET', p .. 'cost', model, text(math.max(1, mean(old, c.sum))), model .. '/phrases',
            string.format('%.4f %.4f %.0f', m[1], m[2], m[3]))
    end
end

local PUBLISH_FIELDS = { 'model', 'image', 'ttl', 'tenant', 'request_id', 'state', 'batch', 'item', 'worker',
    'fence', 'by', 'cancel', 'deadline', 'charge', 'weight', 'reason' } -- END_FIELDS, and more
local function publish_one(b, costs, now, worker, id, fence, cost, result, masks)
    local v = redis.call('HMGET', b.p .. 'job:' .. id, unpack(PUBLISH_FIELDS))
    local me, phrases = worker .. ' ' .. fence, #masks / 2
    if v[6] ~= 'RUNNING' or v[9] ~= worker or v[10] ~= fence then
        if v[11] == me and TERMINAL[v[6]] then return v[6] end
        return lost(id, worker)
    end
    if v[12] == '1' then
        finish_with(b, id, 'CANCELLED', now, v, 'by', me)
        return 'CANCELLED'
    elseif tonumber(v[13]) <= now then
        finish_with(b, id, 'EXPIRED', now, v, 'by', me)
        return 'EXPIRED'
    end
    if v[16] and v[16] ~= '' then
        masks[#masks + 1] = 'reason'
        masks[#masks + 1] = ''
        masks[#masks + 1] = 'message'
        masks[#masks + 1] = ''
    end
    finish_with(b, id, 'SUCCEEDED', now, v, 'by', me, 'result', result, unpack(masks))
    if cost > 0 then
        local of = costs[v[1]] or { sum = 0, n = 0, tenants = {}, phrases = 0, squares = 0, products = 0 }
        costs[v[1]] = of
        of.sum, of.n = of.sum + cost, of.n + 1
        of.phrases, of.squares = of.phrases + phrases, of.squares + phrases * phrases
        of.products = of.products + phrases * cost
        of.tenants[v[4]] = (of.tenants[v[4]] or 0) + (cost - tonumber(v[14] or '0')) / tonumber(v[15] or '1')
    end
    return 'SUCCEEDED'
end

-- {worker id fence cost_us n_masks result mask...}...  ->  per job the state it ended in, or an error
local function publish(keys, a)
    local p, b, out, costs, now = keys[1], batch(keys[1]), {}, {}, now_us()
    local i = 1
    while i <= #a do
        local n, masks = tonumber(a[i + 4]), {}
        for k = 1, n do
            masks[2 * k - 1] = 'mask' .. (k - 1)
            masks[2 * k] = a[i + 5 + k]
        end
        out[#out + 1] = publish_one(b, costs, now, a[i], a[i + 1], a[i + 2], tonumber(a[i + 3]), a[i + 5], masks)
        i = i + 6 + n
    end
    write(b)
    learn_cost(p, costs)
    for model, c in pairs(costs) do
        for tenant, by in pairs(c.tenants) do if by ~= 0 then charge(p, model, tenant, by) end end
    end
    return out
end

-- Common to what else ends a lease: the job's fields, or nil and the answer.
local function end_lease(p, worker, id, fence)
    local v = redis.call('HMGET', p .. 'job:' .. id, 'state', 'worker', 'fence', 'by', 'attempts', 'cancel', 'deadline',
        'history')
    local me = worker .. ' ' .. fence
    if v[1] ~= 'RUNNING' or v[2] ~= worker or v[3] ~= fence then
        if v[1] and v[4] == me then return nil, v[1] end
        return nil, lost(id, worker)
    end
    return v, me
end

-- The last attempt came to nothing.
local function give_up(b, id, now, reason, message, ...)
    finish(b, id, 'FAILED', now, 'reason', reason, 'message', message, ...)
    quarantine(b.p, id, now)
end

-- worker id fence reason message retryable delay_ms max_attempts  ->  the state it is in now
local function fail_job(keys, a)
    local p, b, id, now = keys[1], batch(keys[1]), a[2], now_us()
    local v, me = end_lease(p, a[1], id, a[3])
    if not v then return me end
    local state
    if v[6] == '1' or a[4] == 'CANCELLED' then
        state = 'CANCELLED'
        finish(b, id, state, now, 'by', me)
    elseif tonumber(v[7]) <= now then
        state = 'EXPIRED'
        finish(b, id, state, now, 'by', me, 'reason', a[4], 'message', a[5])
    elseif a[6] == '1' and tonumber(v[5]) < tonumber(a[8]) then
        state = 'QUEUED'
        history(p, id, v[5], a[4], a[5], a[1], now)
        requeue(b, id, now, tonumber(a[7]), 'by', me, 'reason', a[4], 'message', a[5])
    else
        state = 'FAILED'
        local before = v[8] and ' (attempt ' .. v[5] .. '; before: ' .. v[8] .. ')' or ''
        if a[6] == '1' then
            history(p, id, v[5], a[4], a[5], a[1], now)
            give_up(b, id, now, a[4], a[5] .. before, 'by', me)
        else
            finish(b, id, state, now, 'by', me, 'reason', a[4], 'message', a[5] .. before)
        end
    end
    write(b)
    return state
end

-- worker id fence  ->  QUEUED, or its end. A job handed back, as by a worker that stops: no attempt burnt.
local function release(keys, a)
    local p, b, id, now = keys[1], batch(keys[1]), a[2], now_us()
    local v, me = end_lease(p, a[1], id, a[3])
    if not v then return me end
    local state = 'QUEUED'
    if v[6] == '1' then
        state = 'CANCELLED'
        finish(b, id, state, now, 'by', me)
    elseif tonumber(v[7]) <= now then
        state = 'EXPIRED'
        finish(b, id, state, now, 'by', me)
    else
        requeue(b, id, now, 0, 'by', me, 'attempts', text(tonumber(v[5]) - 1))
    end
    write(b)
    return state
end
