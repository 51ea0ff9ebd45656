---- events, for those who watch ----
-- A place in the stream is "ENTRY" when all of that entry has been dealt with, "ENTRY.N" after the first N of what it
-- tells. Reading begins at the entry itself: if it is not there, entries after it may have gone, too.

local function last_event(p)
    local last = redis.call('XREVRANGE', p .. 'events', '+', '-', 'COUNT', 1)
    return last[1] and last[1][1] or '0-0'
end

-- Has the stream, of which somebody saw the very beginning, lost any entry since?
local function has_lost_events(key)
    if redis.call('EXISTS', key) == 0 then return false end
    local info = redis.call('XINFO', 'STREAM', key)
    local of = {}
    for i = 1, #info, 2 do of[info[i]] = info[i + 1] end
    return of['entries-added'] ~= of['length']
end

-- What an entry tells of a tenant (and of one of its batches, unless that is ''), from number `seen` + 1 on. true: `out`
-- is full, and tells where to go on.
local EVENT_PARTS = 5
local function tell(out, entry, seen, tenant, of_batch, limit)
    local f, n, whose, which, id, worker, _ = entry[2], 0, '', '', '', '', nil
    for k = 1, #f, 2 do
        local name, value = f[k], f[k + 1]
        if name == 'tenant' then whose = value
        elseif name == 'batch' then which = value
        elseif name == 'worker' then worker = value
        elseif name == 'id' then id, worker = value, ''
        elseif name == 'state' then
            local from, count = 0, 1
            if packs.is_token(id) then
                _, from, count = packs.parts(id)
            end
            local is_asked = whose == tenant and (of_batch == '' or which == of_batch)
            for m = 1, is_asked and count or 0 do
                if n + m > seen then
                    if #out >= 3 + EVENT_PARTS * limit then return true end
                    local at, job = #out, count > 1 and packs.prefix_of(id) .. HEX[from + m - 1] or id
                    out[1] = entry[1] .. '.' .. (n + m)
                    out[at + 1], out[at + 2], out[at + 3], out[at + 4], out[at + 5] = out[1], job, value, worker, which
                end
            end
            n = n + count
        end
    end
    return false
end

-- tenant batch from limit  ->  {where it ended, 1 if events before it were lost, 1 if there are more, and per event its
-- place, id, state, worker, batch}. batch '': any. Redis does nothing else meanwhile, so it looks through a bounded
-- part of the stream, and takes no more entries in hand at once than it is likely to tell of.
local function events(keys, a)
    local key, limit = keys[1] .. 'events', tonumber(a[4])
    local from, done = string.match(a[3], '^([^.]+)%.?(%d*)$')
    local got = redis.call('XRANGE', key, from, '+', 'COUNT', STEP_ENTRIES)
    local is_there, gap = got[1] and got[1][1] == from, false
    if from == '0-0' then
        gap = has_lost_events(key)
    elseif not is_there then
        gap = true
        -- No entry is younger than the place: it is of a stream that is lost, and another one has begun.
        if not got[1] then got = redis.call('XRANGE', key, '-', '+', 'COUNT', STEP_ENTRIES) end
    end
    local out, looked = { got[1] and from or '0-0', gap and 1 or 0, 1 }, 0
    local seen = is_there and (done == '' and math.huge or tonumber(done)) or 0
    while looked < PIECE_FIELDS do
        for _, entry in ipairs(got) do
            if tell(out, entry, seen, a[1], a[2], limit) then return out end
            out[1], seen, looked = entry[1], 0, looked + #entry[2]
        end
        if #got < STEP_ENTRIES then
            out[3] = 0
            return out
        end
        got = redis.call('XRANGE', key, '(' .. out[1], '+', 'COUNT', STEP_ENTRIES)
    end
    return out
end

-- tenant id...  ->  {the place where the stream ends, and per job {id, state, worker, batch, since} or an empty list}
local function states(keys, a)
    local p, out, seen = keys[1], { last_event(keys[1]) }, {}
    for i = 2, #a do
        local j, job = look_job(p, a[i], seen), {}
        if j and j.tenant == a[1] then
            local runs = j.state == 'RUNNING'
            local since = TERMINAL[j.state] and j.finished or runs and j.started or j.created
            job = { a[i], j.state, runs and j.worker or '', j.batch or '', since }
        end
        out[#out + 1] = job
    end
    return out
end
