---- claim and renewal ----

-- How many jobs of so much weight the tenant may begin before it is the turn of one whose time is `rival`.
local function share(c, tenant, rival, weight)
    return rival and math.max(1, math.ceil((rival - tenant.time) * weight / c.cost)) or c.most
end

-- The first of a tenant's line, of which `left` are wanted. What is left of a pack is back in the line.
local function claim_first(b, c, tenant, rival, line, id, left)
    if not packs.is_token(id) then return claim_one(b, c, id) end
    local k = packs.of(b, packs.prefix_of(id), true)
    local n, weight = packs.claim(b, c, line, id, k and math.min(left, share(c, tenant, rival, k.weight)) or left)
    return true, n > 0 and n * c.cost / weight or nil
end

-- One job, or as many of a pack as it is the tenant's turn for; if the tenant is alone (no rival), all that are wanted.
-- false: nothing more is to be given.
local function claim_from(b, c, tenant, rival)
    local line = b.p .. 'line:' .. c.model .. ':' .. tenant.name
    local want = 1
    repeat
        local got, were_packs = redis.call('ZPOPMIN', line, want), false
        for i = 1, #got, 2 do
            local goes, price = c.held < c.most, nil
            if goes then goes, price = claim_first(b, c, tenant, rival, line, got[i], c.most - c.held) end
            if not goes then
                for k = i, #got, 2 do redis.call('ZADD', line, got[k + 1], got[k]) end
                return false
            end
            if price then pay_ahead(c, tenant, price) end
            were_packs = packs.is_token(got[i])
        end
        want = were_packs and 1 or c.most - c.held -- a pack is likely to be followed by another, and one may be enough
    until rival or want <= 0 or c.held >= c.most or #got == 0
    end_of_line(b, c, tenant, line)
    return true
end

-- worker model max lease_ms - held near_ms  ->  per job {id, fence, attempt, tenant, spec, image, deadline, created,
-- group}, or of items of a pack {token, tenant, deadline, created, {kept...}} (see submit_items; fence and attempt are 1,
-- group is 0). held: how many jobs the worker has already. group: with how many at most it may be held at once, 0: any.
-- near_ms, if above 0: the worker keeps images; jobs on one that another has at hand are left to that for so long. A
-- number may follow the jobs: in so many milliseconds, or once it holds none, there may be more for this worker.
local function claim(keys, a)
    local p, b = keys[1], batch(keys[1])
    local held = tonumber(a[6] or '0')
    local now = now_us()
    local c = { worker = a[1], model = a[2], held = held, most = held + tonumber(a[3]), now = now, out = {}, clock = 0,
        lease = ms_up(now + tonumber(a[4]) * 1000), lease_us = tonumber(a[4]) * 1000 }
    c.near_us = tonumber(a[7] or '0') * 1000
    local claim_next = c.near_us > 0 and claim_near or claim_from
    if c.near_us > 0 then c.heard, c.marked, c.looks = {}, {}, tonumber(a[3]) + LOOKS end
    local found = redis.call('ZRANGE', p .. 'fair:' .. c.model, 0, tonumber(a[3]), 'WITHSCORES')
    if #found == 0 then return {} end
    c.cost = tonumber(redis.call('HGET', p .. 'cost', c.model) or '0')
    if c.cost <= 0 then c.cost = FIRST_COST_US end
    local tenants = {}
    for i = 1, #found, 2 do tenants[#tenants + 1] = { name = found[i], time = tonumber(found[i + 1]) } end
    while c.held < c.most do
        local first, second = nil, nil
        for _, t in ipairs(tenants) do
            if not t.gone and not t.is_passed then
                if not first or t.time < first.time then
                    first, second = t, first
                elseif not second or t.time < second.time then
                    second = t
                end
            end
        end
        if not first or not claim_next(b, c, first, second and second.time) then break end
    end
    local others = #tenants > tonumber(a[3]) -- beyond those looked at
    for _, t in ipairs(tenants) do
        if not t.gone then others = true end
        if t.changed and not t.gone then later_zadd(b, 'fair:' .. c.model, text(t.time), t.name) end
    end
    if #tenants > 1 and others and c.clock > 0 then redis.call('HSET', p .. 'clock', c.model, text(c.clock)) end
    if c.near_us > 0 then pass_over(b, c, tenants) end
    if c.held < c.most then c.out[#c.out + 1] = c.again_ms end
    write(b)
    return c.out
end

-- worker lease_ms {id fence}...  ->  per job: ok, lost, cancel or expired
local function renew(keys, a)
    local p, b, out, now = keys[1], batch(keys[1]), {}, now_us()
    local expire = ms_up(now + tonumber(a[2]) * 1000)
    for i = 3, #a, 2 do
        local answer, id = 'ok', a[i]
        local k = b.packs[packs.prefix_of(id)]
        local j, lease = not k and job_of(p, id) or nil, id
        if not j then
            k = packs.of(b, packs.prefix_of(id))
            j = k and packs.job(k, packs.index_of(id)) or job_of(p, id)
            lease = k and j and j.state == 'RUNNING' and k.map[packs.index_of(id) + 1] == RUNS and
                packs.run_of(k, packs.index_of(id)).token or id
        end
        if not j or not holds(j, a[1], a[i + 1]) then
            answer = j and j.state == 'EXPIRED' and 'expired' or 'lost'
        elseif j.deadline <= now then
            finish_job(b, id, 'EXPIRED', now, own_job(b, id))
            answer = 'expired'
        else
            later_zadd(b, 'leases', expire, lease)
            if j.cancel then answer = 'cancel' end
        end
        out[#out + 1] = answer
    end
    write(b)
    return out
end
