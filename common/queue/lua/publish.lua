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

-- Of the jobs at a[i] and after it (see publish) those that run in pack k, and end well there. -> where the next one is
function packs.publish(b, k, a, i, last, out, costs, now)
    local worker, prefix, map, set, unused = a[i], k.prefix, k.map, k.set, b.unused
    if k.deadline <= now then return i end
    local of = costs[k.model] or { sum = 0, n = 0, tenants = {}, phrases = 0, squares = 0, products = 0 }
    local finished, head = struct.pack('<d', now), 'SUCCEEDED ' .. ms(now) .. ' ' .. prefix
    local done, entries, over, n = k.done or {}, {}, 0, 0
    while i <= last and a[i] == worker and a[i + 2] == '1' do
        local id = a[i + 1]
        local at = packs.INDEX[string.sub(id, 31)]
        if not at or string.sub(id, 1, 30) ~= prefix or map[at + 1] ~= RUNS then break end
        local run = packs.run_of(k, at)
        if run.worker ~= worker or #set > 4000 then break end -- a call takes only so many arguments
        local m, cost, masks = #set, tonumber(a[i + 3]), tonumber(a[i + 4])
        set[m + 1] = packs.RESULT[at]
        set[m + 2] = finished .. a[i + 5]
        for x = 1, masks do
            set[m + 1 + 2 * x] = packs.MASK[at] .. (x - 1)
            set[m + 2 + 2 * x] = a[i + 5 + x]
        end
        local image, item = struct.unpack(packs.ITEM, packs.item_of(k, at))
        map[at + 1], run.is_less, n = DONE, true, n + 1
        unused[image] = (unused[image] or 0) + 1
        entries[n] = head .. HEX[at] .. ' ' .. item
        done[#done + 1] = at
        out[#out + 1] = 'SUCCEEDED'
        if cost > 0 then
            of.sum, of.n = of.sum + cost, of.n + 1
            of.phrases, of.squares, of.products = of.phrases + masks, of.squares + masks * masks, of.products + masks * cost
            over = over + cost - run.charge
        end
        i = i + 6 + masks
    end
    if n == 0 then return i end
    if not k.is_open then -- until all that belongs to these ends is written
        k.is_open = true
        set[#set + 1] = 'open'
        set[#set + 1] = '1'
    end
    if of.n > 0 then
        costs[k.model] = of
        of.tenants[k.tenant] = (of.tenants[k.tenant] or 0) + over / k.weight
    end
    k.done, k.is_changed, k.is_less = done, true, true
    later_incr(b, 'count', 'more', -n)
    later_incr(b, 'count', 'SUCCEEDED', n)
    later_incr(b, 'tenant_jobs', k.tenant, -n)
    later_ready(b, k.model, -n)
    later_ends(b, k.tenant .. ':' .. k.batch, 'SUCCEEDED', entries)
    if #set > 4000 then packs.write_one(b, k) end
    return i
end

-- The job at a[i]; v: what is known of its record.
local function publish_one(b, costs, now, a, i, v)
    local worker, id, fence, cost, phrases = a[i], a[i + 1], a[i + 2], tonumber(a[i + 3]), tonumber(a[i + 4])
    local k, me = not v[1] and packs.of(b, packs.prefix_of(id)), worker .. ' ' .. fence
    local j = k and packs.job(k, packs.index_of(id)) or unpack_job(v[1], v[2])
    if not j or not holds(j, worker, fence) then
        if j and j.by == me and TERMINAL[j.state] then return j.state end
        return lost(id, worker)
    end
    if k then j = own_job(b, id) end
    j.by = me
    if j.cancel then
        finish_job(b, id, 'CANCELLED', now, j)
        return 'CANCELLED'
    elseif j.deadline <= now then
        finish_job(b, id, 'EXPIRED', now, j)
        return 'EXPIRED'
    end
    local masks = {}
    for k = 1, phrases do
        masks[2 * k - 1] = 'mask' .. (k - 1)
        masks[2 * k] = a[i + 5 + k]
    end
    if v[3] and v[3] ~= '' then
        masks[#masks + 1] = 'reason'
        masks[#masks + 1] = ''
        masks[#masks + 1] = 'message'
        masks[#masks + 1] = ''
    end
    finish_job(b, id, 'SUCCEEDED', now, j, 'result', a[i + 5], unpack(masks))
    if cost > 0 then
        local of = costs[j.model] or { sum = 0, n = 0, tenants = {}, phrases = 0, squares = 0, products = 0 }
        costs[j.model] = of
        of.sum, of.n = of.sum + cost, of.n + 1
        of.phrases, of.squares = of.phrases + phrases, of.squares + phrases * phrases
        of.products = of.products + phrases * cost
        of.tenants[j.tenant] = (of.tenants[j.tenant] or 0) + (cost - j.charge) / j.weight
    end
    return 'SUCCEEDED'
end

-- {worker id fence cost_us n_masks result mask...}...  ->  per job the state it ended in, or an error
local function publish(keys, a)
    local p, b, out, costs, now = keys[1], batch(keys[1]), {}, {}, now_us()
    local i, last = 1, #a
    while i <= last do
        local id, v, from = a[i + 1], {}, i
        local k = b.packs[packs.prefix_of(id)]
        if not k then
            v = redis.call('HMGET', p .. 'job:' .. id, 'fixed', 'state', 'reason')
            k = not v[1] and packs.of(b, packs.prefix_of(id))
        end
        if k then i = packs.publish(b, k, a, i, last, out, costs, now) end
        if i == from then
            if not v[1] then v = redis.call('HMGET', p .. 'job:' .. id, 'fixed', 'state', 'reason') end
            out[#out + 1] = publish_one(b, costs, now, a, i, v)
            i = i + 6 + tonumber(a[i + 4])
        end
    end
    write(b)
    learn_cost(p, costs)
    for model, c in pairs(costs) do
        for tenant, by in pairs(c.tenants) do if by ~= 0 then charge(p, model, tenant, by) end end
    end
    return out
end

-- Common to what else ends a lease: the job, or nil and the answer.
local function end_lease(b, worker, id, fence)
    local j, me = look_job(b.p, id, {}), worker .. ' ' .. fence
    if not j or not holds(j, worker, fence) then
        if j and j.by == me then return nil, j.state end
        return nil, lost(id, worker)
    end
    j = own_job(b, id)
    j.by = me
    return j
end

-- The last attempt came to nothing.
local function give_up(b, id, now, j, reason, message)
    finish_job(b, id, 'FAILED', now, j, 'reason', reason, 'message', message)
    quarantine(b.p, id, now, j)
end

-- worker id fence reason message retryable delay_ms max_attempts  ->  the state it is in now
local function fail_job(keys, a)
    local p, b, id, now = keys[1], batch(keys[1]), a[2], now_us()
    local j, answer = end_lease(b, a[1], id, a[3])
    if not j then return answer end
    local state
    if j.cancel or a[4] == 'CANCELLED' then
        state = 'CANCELLED'
        finish_job(b, id, state, now, j)
    elseif j.deadline <= now then
        state = 'EXPIRED'
        finish_job(b, id, state, now, j, 'reason', a[4], 'message', a[5])
    elseif a[6] == '1' and j.attempts < tonumber(a[8]) then
        state = 'QUEUED'
        history(p, id, j.attempts, a[4], a[5], a[1], now)
        requeue(b, id, now, tonumber(a[7]), j, 'reason', a[4], 'message', a[5])
    else
        state = 'FAILED'
        local earlier = redis.call('HGET', p .. 'job:' .. id, 'history')
        local before = earlier and ' (attempt ' .. j.attempts .. '; before: ' .. earlier .. ')' or ''
        if a[6] == '1' then
            history(p, id, j.attempts, a[4], a[5], a[1], now)
            give_up(b, id, now, j, a[4], a[5] .. before)
        else
            finish_job(b, id, state, now, j, 'reason', a[4], 'message', a[5] .. before)
        end
    end
    write(b)
    return state
end

-- worker id fence  ->  QUEUED, or its end. A job handed back, as by a worker that stops: no attempt burnt.
local function release(keys, a)
    local p, b, id, now = keys[1], batch(keys[1]), a[2], now_us()
    local j, answer = end_lease(b, a[1], id, a[3])
    if not j then return answer end
    local state = 'QUEUED'
    if j.cancel then
        state = 'CANCELLED'
        finish_job(b, id, state, now, j)
    elseif j.deadline <= now then
        state = 'EXPIRED'
        finish_job(b, id, state, now, j)
    else
        j.attempts = j.attempts - 1
        requeue(b, id, now, 0, j)
    end
    write(b)
    return state
end
