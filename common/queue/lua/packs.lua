---- what is done with packs ----

-- A pack begins with item `id`, number `number` of its batch; what comes next goes into it until it is closed. h: see
-- taking.item_head.
function packs.begin(s, h, id, number, place)
    s.pack = { prefix = packs.prefix_of(id), h = h, number = number, place = place, n = 0, items = {} }
end

function packs.add(s, kept)
    local k = s.pack
    local l, n = k.items, k.n
    l[2 * n + 1] = packs.KEPT[n]
    l[2 * n + 2] = kept
    k.n = n + 1
end

function packs.close(b, s)
    local k = s.pack
    if not k then return end
    s.pack = nil
    local t, name, live = k.h.t, packs.token(k.prefix, 0, k.n), k.h.k.live
    redis.call('HSET', b.p .. 'pack:' .. k.prefix, 'fixed', t.fixed .. struct.pack('<ddHc0dHc0', k.h.deadline, k.place,
        #k.h.batch, k.h.batch, k.number, #k.h.k.call, k.h.k.call), 'map', string.rep('Q', k.n) .. string.rep('\0', k.n + 1), unpack(k.items))
    local line, index = t.line, t.index
    line[#line + 1] = k.place
    line[#line + 1] = name
    index[#index + 1] = 0
    index[#index + 1] = name
    later_zadd(b, 'live', k.h.live_until, name)
    later_incr(b, 'count', 'more', k.n - 1)
    live[#live + 1] = 'p' .. text(k.number)
    live[#live + 1] = name
end

-- One that waited or ran in a pack does so no more.
function packs.leave(b, k, i, state)
    k.map[i + 1], k.is_changed, k.is_less = state, true, true
    later_incr(b, 'count', 'more', -1)
end

-- An item of a pack becomes a job with a record of its own. One that has succeeded stays where it is.
function packs.unpack(b, k, i)
    local j, spec = packs.job(k, i)
    if not j or TERMINAL[j.state] then return j end
    local p, id = b.p, k.prefix .. HEX[i]
    local known = job_of(p, id)
    if known then -- a torn log has it already
        packs.leave(b, k, i, OUT)
        return known
    end
    redis.call('HSET', p .. 'job:' .. id, 'fixed', pack_terms(k.created, k.ttl, k.weight, k.tenant, k.model) ..
        pack_own(k.deadline, j.place, j.image, '', k.batch, j.item), 'state', pack_state(j), 'spec', spec)
    redis.call('ZADD', p .. 'live', ms_up(k.deadline), id)
    redis.call('HSET', p .. 'batch_live:' .. k.tenant .. ':' .. k.batch, number_of(j.item), id)
    if j.state == 'RUNNING' then
        local run = packs.run_of(k, i)
        redis.call('ZADD', p .. 'leases', redis.call('ZSCORE', p .. 'leases', run.token) or ms(now_us()), id)
        run.is_less = true
    end
    packs.leave(b, k, i, OUT)
    return j
end

-- A job that is to be changed: one that has a record of its own, or has it from now on. nil: there is no such job.
local function own_job(b, id)
    local j = job_of(b.p, id)
    if j then return j end
    local k = packs.of(b, packs.prefix_of(id))
    return k and packs.unpack(b, k, packs.index_of(id)) or nil
end

-- A member of `live` whose pack is not there, or is over, must go.
function packs.check_over(b, of)
    local k = packs.of(b, packs.prefix_of(of))
    if k then
        k.is_changed, k.is_less = true, true
    elseif redis.call('ZREM', b.p .. 'live', of) == 1 then
        later_incr(b, 'count', 'more', 1 - select(3, packs.parts(of)))
    end
end

-- All that run in a pack by this token. -> how many
function packs.unpack_run(b, of)
    local prefix, from = packs.parts(of)
    local k, n = packs.of(b, prefix), 0
    for i = from, k and k.n - 1 or -1 do
        if k.map[i + 1] == RUNS and k.map[k.n + i + 1] == from then
            packs.unpack(b, k, i)
            n = n + 1
        end
    end
    redis.call('ZREM', b.p .. 'leases', of)
    return n
end

-- How many run by this token.
function packs.running_in(p, of)
    local prefix, from = packs.parts(of)
    local k, n = packs.read(p, prefix), 0
    for i = from, k and k.n - 1 or -1 do
        if k.map[i + 1] == RUNS and k.map[k.n + i + 1] == from then n = n + 1 end
    end
    return n
end

-- Items that wait become jobs in line, each at its own place. The token is off the line.
function packs.unpack_waiting(b, of)
    local prefix, from = packs.parts(of)
    local k = packs.of(b, prefix, true)
    if not k then return end
    for i = from, k.n - 1 do
        if k.map[i + 1] == WAITS then
            local j = packs.unpack(b, k, i)
            enter_line(b, k.model, k.tenant, j.place, prefix .. HEX[i])
        end
    end
    k.next, k.is_changed = k.n, true
end

-- Its record goes, and what leads to it; items that have a record of their own are told of by themselves now.
function packs.forget(b, tenant, of, out)
    local prefix = packs.prefix_of(of)
    for i in string.gmatch(out, '%x%x') do
        if redis.call('EXISTS', b.p .. 'job:' .. prefix .. i) == 1 then later_zadd(b, 'index:' .. tenant, 0, prefix .. i) end
    end
    later_remove(b, 'ZREM', 'index:' .. tenant, of)
    later_remove(b, 'UNLINK', 'pack:' .. prefix, nil)
end

-- A pack of which all items have ended has an end.
function packs.settle(b, k)
    if packs.left(k) > 0 then return end
    local out = {}
    for i = 0, k.n - 1 do if k.map[i + 1] == OUT then out[#out + 1] = HEX[i] end end
    if redis.call('ZSCORE', b.p .. 'live', k.token) then
        later_remove(b, 'ZREM', 'live', k.token)
        later_incr(b, 'count', 'more', 1)
    end
    later_remove(b, 'HDEL', 'batch_live:' .. k.tenant .. ':' .. k.batch, 'p' .. text(k.number))
    if #out == k.n then
        packs.forget(b, k.tenant, k.token, table.concat(out))
    else
        redis.call('PEXPIRE', k.key, k.ttl)
        later_zadd(b, 'ended', ms_up(now_us() + k.ttl * 1000), k.tenant .. ':' .. k.token .. ':' .. table.concat(out))
    end
end

-- Runs whose last item has ended have no lease any more.
function packs.settle_runs(b, k)
    for from, run in pairs(k.run) do
        local is_over = run.is_less
        for i = from + 1, is_over and from + run.n or 0 do
            if k.map[i] == RUNS and k.map[k.n + i] == from then is_over = false end
        end
        if is_over then later_remove(b, 'ZREM', 'leases', run.token) end
    end
end

-- An event of each of some items, by their indices: of those that follow one another as one.
function packs.tell(b, k, which, state, worker)
    local i = 1
    while which and i <= #which do
        local n = 1
        while which[i + n] == which[i] + n do n = n + 1 end
        local id = n > 1 and packs.token(k.prefix, which[i], n) or k.prefix .. HEX[which[i]]
        event(b, id, state, k.tenant, k.batch, worker)
        i = i + n
    end
end

function packs.write_one(b, k)
    k.map[#k.map] = k.next
    redis.call('HSET', k.key, 'map', string.char(unpack(k.map)), unpack(k.set))
    packs.tell(b, k, k.done, 'SUCCEEDED')
    k.done = nil
    if k.is_open then b.open[#b.open + 1] = k end
    if k.is_less then
        packs.settle_runs(b, k)
        packs.settle(b, k)
    end
    k.set, k.is_changed, k.is_less = {}, false, false
end

function packs.write(b)
    for _, k in pairs(b.packs) do if k and k.is_changed then packs.write_one(b, k) end end
end
