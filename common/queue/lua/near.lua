---- which job of a line a worker gets ----

-- Begins job `id`, which is off its line. known: its fields, if they have been read already. false: it must wait until
-- the worker's hands are empty.
local function claim_one(b, c, id, known)
    local job = b.p .. 'job:' .. id
    local v = known or redis.call('HMGET', job, 'fixed', 'state', 'spec')
    if not v[1] or not v[2] then return true end
    -- As unpack_job, without a table: this is done for every job.
    local created, _, weight, tenant, _, deadline, _, image, _, of_batch = struct.unpack(FIXED, v[1])
    local state, _, group, fence, attempts, _, _, _, _, _, by = struct.unpack(STATE, v[2])
    if state ~= STATE_NUMBER.QUEUED then return true end
    if of_batch ~= '' and may_be_unpromised() then
        local is_so, is_counted = is_job_promised(b, id, tenant, of_batch)
        if not is_so then
            drop_unpromised(b, id, unpack_job(v[1], v[2]), is_counted)
            return true
        end
    end
    if deadline <= c.now then
        finish_job(b, id, 'EXPIRED', c.now, unpack_job(v[1], v[2]))
        return true
    end
    -- A job of a group that died with its worker is tried among fewer.
    if group > 0 and c.held >= group then
        c.again_ms = 1000 -- if its hands are not empty before
        return false
    end
    if group > 0 then c.most = math.min(c.most, group) end
    fence, attempts = fence + 1, attempts + 1
    redis.call('HSET', job, 'state', struct.pack(STATE, STATE_NUMBER.RUNNING, 0, group, fence, attempts, c.now, c.cost, 0, 0,
        #c.worker, c.worker, #by, by))
    later_zadd(b, 'leases', c.lease, id)
    event(b, id, 'RUNNING', tenant, of_batch, c.worker)
    c.out[#c.out + 1] = { id, fence, attempts, tenant, v[3] or '', image, deadline, created, group }
    c.held = c.held + 1
    return true, c.cost / weight
end

-- Begins up to `most` of the items behind a token that is off its line. -> how many were begun, the weight
function packs.claim(b, c, line, of, most)
    local prefix, from = packs.parts(of)
    local k, n = packs.of(b, prefix), 0
    if not k then return 0 end
    if k.deadline <= c.now then
        packs.unpack_waiting(b, of)
        return 0
    end
    local which, fields = {}, {}
    local i = from
    while i < k.n and n < most do
        if k.map[i + 1] == WAITS then
            n = n + 1
            which[n], fields[n] = i, packs.KEPT[i]
            k.map[i + 1], k.map[k.n + i + 1] = RUNS, from
        end
        i = i + 1
    end
    k.next, k.is_changed = i, true
    if i < k.n then redis.call('ZADD', line, k.place + i, packs.token(prefix, i, k.n - i)) end
    if n == 0 then return 0 end
    local run = { n = i - from, token = packs.token(prefix, from, i - from) }
    k.run[from] = run
    k.set[#k.set + 1] = 'r' .. HEX[from]
    k.set[#k.set + 1] = struct.pack(packs.RUN, run.n, c.now, c.cost, #c.worker, c.worker)
    later_zadd(b, 'leases', c.lease, run.token)
    packs.tell(b, k, which, 'RUNNING', c.worker)
    local m = 1
    while m <= n do -- those that follow one another at once
        local r = 1
        while which[m + r] == which[m] + r do r = r + 1 end
        c.out[#c.out + 1] = { packs.token(prefix, which[m], r), k.tenant, k.deadline, k.created,
            redis.call('HMGET', k.key, unpack(fields, m, m + r - 1)) }
        m = m + r
    end
    c.held = c.held + n
    return n, k.weight
end

-- What the tenant is charged when its jobs are begun.
local function pay_ahead(c, tenant, price)
    c.clock = math.max(c.clock, tenant.time)
    tenant.time = tenant.time + price
    tenant.changed = true
end

-- After a job has been taken off a line.
local function end_of_line(b, c, tenant, line)
    if redis.call('EXISTS', line) == 0 then
        tenant.gone = true
        deactivate(b.p, c.model, tenant.name, tenant.time)
    end
end

-- Jobs whose image a worker has at hand go to it: delay scheduling (Zaharia et al., EuroSys 2010). A claim marks who
-- has an image; others pass over the jobs on it, and a holder takes them before older ones, until c.near_us after a
-- job was first passed over: from then on it is in its turn for everybody, for good.

-- Is it heard of? A lease's length of silence, or the end of its record, makes its marks void.
local function is_heard(b, c, worker)
    if c.heard[worker] == nil then
        local seen = redis.call('HGET', b.p .. 'worker:' .. worker, 'seen')
        c.heard[worker] = seen and tonumber(seen) + c.lease_us > c.now or false
    end
    return c.heard[worker]
end

-- The first n members of a line, and their places. Each must be a job of its own, so packs that stand there are taken
-- apart, one at a time: after one the n are likely to be complete.
local function first_jobs(b, line, n)
    local found, pack = nil, nil
    repeat
        found, pack = redis.call('ZRANGE', line, 0, n - 1, 'WITHSCORES'), nil
        for i = #found - 1, 1, -2 do if packs.is_token(found[i]) then pack = found[i] end end
        if pack then
            redis.call('ZREM', line, pack)
            packs.unpack_waiting(b, pack)
        end
    until not pack
    return found
end

-- The first n of a line, as this worker sees them. is_first: in its turn here; is_open: for anybody.
local function look(b, c, line, n)
    local view, holders, marks = { n = 0, last = 0 }, {}, {}
    local found = first_jobs(b, line, n)
    for i = 1, #found, 2 do
        local v = redis.call('HMGET', b.p .. 'job:' .. found[i], 'fixed', 'state', 'spec', 'left')
        local image = v[1] and select(8, struct.unpack(FIXED, v[1])) or ''
        local left = tonumber(v[4] or '')
        marks[#marks + 1] = b.p .. 'holder:' .. c.model .. ':' .. image
        view[#view + 1] = { id = found[i], place = found[i + 1], left = left, mark = marks[#marks], known = v,
            is_first = not v[1] or left and left + c.near_us <= c.now }
    end
    if #marks > 0 then holders = redis.call('MGET', unpack(marks)) end
    for i, e in ipairs(view) do
        e.is_first = e.is_first or holders[i] == c.worker
        e.is_open = e.is_first or not holders[i] or not is_heard(b, c, holders[i])
    end
    view.n = #view
    c.looks = c.looks - #view
    return view
end

local function next_of(view)
    local open = nil
    for i, e in ipairs(view) do
        if not e.is_taken and e.is_first then return i, e end
        if not e.is_taken and e.is_open and not open then open = i end
    end
    return open, view[open]
end

-- As claim_from, one job.
local function claim_near(b, c, tenant, rival)
    local line = b.p .. 'line:' .. c.model .. ':' .. tenant.name
    if not tenant.view or tenant.view.n == 0 then
        if c.looks <= 0 then
            tenant.is_passed, c.again_ms = true, 1
            return true
        end
        tenant.view = look(b, c, line, rival and LOOK_SHARED or c.most - c.held + LOOK_AHEAD)
    end
    local view = tenant.view
    local i, e = next_of(view)
    if not i then
        tenant.is_passed = true
        if #view == 0 then end_of_line(b, c, tenant, line) end
        return true
    end
    redis.call('ZREM', line, e.id)
    local goes, price = claim_one(b, c, e.id, e.known)
    if not goes then
        redis.call('ZADD', line, e.place, e.id)
        return false
    end
    e.is_taken, view.n, view.last = true, view.n - 1, math.max(view.last, i)
    if price then
        pay_ahead(c, tenant, price)
        if not c.marked[e.mark] then redis.call('SET', e.mark, c.worker, 'PX', HOLDER_KEPT_MS) end
        c.marked[e.mark] = true
    end
    if view.n == 0 then end_of_line(b, c, tenant, line) end
    return true
end

-- Of those that were passed over from now on everybody knows since when. c.again_ms: in how many milliseconds the first
-- of them is for anybody.
local function pass_over(b, c, tenants)
    for _, t in ipairs(tenants) do
        local view = t.view or {}
        for i, e in ipairs(view) do
            if not e.is_taken and (t.is_passed or i < view.last) then
                if not e.left then
                    e.left = c.now
                    redis.call('HSET', b.p .. 'job:' .. e.id, 'left', text(c.now))
                end
                local wait = math.max(1, math.ceil((e.left + c.near_us - c.now) / 1000))
                c.again_ms = math.min(c.again_ms or wait, wait)
            end
        end
    end
end
