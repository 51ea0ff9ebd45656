#!lua name=pseg1
-- The queue's state machine. Every operation on a job is one of these functions: one round trip, and
-- all of it or nothing. docs/job-lifecycle.md draws the transitions, proto/KEYS.md lists the keys.
--
-- KEYS[1] is the queue's prefix, "pseg:{NAME}:"; all other keys are made from it, so that they lie in
-- one slot of a cluster. Redis' clock is the only clock. Numbers are written by %.0f, since Lua would
-- write large ones with an exponent.
--
-- A failure that the caller must tell apart is an error reply "PSEG <REASON> <message>".
--
-- A redis.call costs more than the Lua around it, so submit and publish take many jobs at once, and
-- what many jobs write into one key is gathered in a `batch` and written when the function ends.
--
-- REVISION counts the changes of this file. A process loads its copy where an older one lies and
-- leaves a newer one in place, so from the first release on a function of "pseg1" keeps its arguments
-- and its answer, and new arguments are added at the end; what cannot be done so is a library "pseg2".

local REVISION = 5
local EVENTS_MAX = 100000
local MODEL_KEPT_US = 86400 * 1000000 -- after its last worker's last heartbeat
local WORKER_KEPT_MS = 3600 * 1000    -- the record of a lost worker, until a sweep has tidied up
local CASE_KEPT_US = 7 * 86400 * 1000000 -- a job in quarantine
local HEAD_START_US = 60 * 1000000    -- of one step of priority before those that came at the same time
local FIRST_COST_US = 10000           -- of a job, until one of its model has told
local EVIDENCE_BYTES = 3000           -- of one attempt
local TERMINAL = { SUCCEEDED = true, FAILED = true, CANCELLED = true, EXPIRED = true }
-- The fields that a reader of a job gets, in this order (queue_redis.c reads them by place).
local FIELDS = { 'tenant', 'request_id', 'state', 'spec', 'result', 'reason', 'message', 'attempts',
    'cancel', 'created', 'started', 'finished', 'deadline', 'expire', 'ttl', 'model', 'image', 'worker' }

local function text(x) return string.format('%.0f', x) end
-- Scores are whole milliseconds: rounded up when they are set and down when they are compared, so that
-- nothing happens early.
local function ms_up(us) return text(math.ceil(us / 1000)) end
local function ms(us) return text(math.floor(us / 1000)) end

local function now_us()
    local t = redis.call('TIME')
    return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

local function fail(reason, message)
    return redis.error_reply('PSEG ' .. reason .. ' ' .. message)
end

local function view(p, id)
    local v = redis.call('HMGET', p .. 'job:' .. id, unpack(FIELDS))
    for i = 1, #FIELDS do if not v[i] then v[i] = '' end end
    table.insert(v, 1, id)
    return v
end

---- what a function writes when it ends ----

local function batch(p)
    return { p = p, add = {}, rem = {}, incr = {}, events = {}, ready = {}, wake = {}, memo = {} }
end

-- One more job of a model, or one fewer, waits or runs.
local function later_ready(b, model, by)
    b.ready[model] = (b.ready[model] or 0) + by
end

-- ZADD key score member
local function later_zadd(b, key, score, member)
    local l = b.add[key]
    if not l then
        l = {}
        b.add[key] = l
    end
    l[#l + 1] = score
    l[#l + 1] = member
end

local function later_remove(b, command, key, member)
    local of = b.rem[command]
    if not of then
        of = {}
        b.rem[command] = of
    end
    local l = of[key]
    if not l then
        l = {}
        of[key] = l
    end
    l[#l + 1] = member
end

-- HINCRBY key field by; fields of `tenant_*` go at 0.
local function later_incr(b, key, field, by)
    local l = b.incr[key]
    if not l then
        l = {}
        b.incr[key] = l
    end
    l[field] = (l[field] or 0) + by
end

local function event(b, id, state, worker)
    local e = b.events
    e[#e + 1] = 'id'
    e[#e + 1] = id
    e[#e + 1] = 'state'
    e[#e + 1] = state
    if worker then
        e[#e + 1] = 'worker'
        e[#e + 1] = worker
    end
end

local function write(b)
    local p = b.p
    for key, l in pairs(b.add) do redis.call('ZADD', p .. key, unpack(l)) end
    for command, of in pairs(b.rem) do
        for key, l in pairs(of) do redis.call(command, p .. key, unpack(l)) end
    end
    for key, l in pairs(b.incr) do
        for field, by in pairs(l) do
            if by ~= 0 and redis.call('HINCRBY', p .. key, field, text(by)) <= 0 and key ~= 'count' then
                redis.call('HDEL', p .. key, field)
            end
        end
    end
    for model, by in pairs(b.ready) do
        if by > 0 then
            local ones = {}
            for i = 1, by do ones[i] = '' end
            redis.call('RPUSH', p .. 'ready:' .. model, unpack(ones))
        elseif by < 0 then
            redis.call('LPOP', p .. 'ready:' .. model, -by)
        end
    end
    for model in pairs(b.wake) do redis.call('XADD', p .. 'wake:' .. model, 'MAXLEN', 1, '*', 'w', '') end
    if #b.events > 0 then
        redis.call('XADD', p .. 'events', 'MAXLEN', '~', EVENTS_MAX, '*', unpack(b.events))
    end
end

---- lines ----
-- A line is a sorted set of the jobs of one model and tenant that may be begun. Which tenant's turn it is
-- tells start-time fair queueing (Goyal, Vin and Cheng 1996): each has a virtual time, by which its jobs'
-- compute-time over its weight is counted, and the lowest goes first. One that comes anew begins at the
-- clock, the time of the tenant that was last served, or at its own if it has run ahead: staying away
-- saves nothing up, and forgives nothing while others wait.

local function activate(p, model, tenant)
    if redis.call('ZSCORE', p .. 'fair:' .. model, tenant) then return end
    local clock = tonumber(redis.call('HGET', p .. 'clock', model) or '0')
    local own = tonumber(redis.call('ZSCORE', p .. 'idle:' .. model, tenant) or '0')
    if own > 0 then redis.call('ZREM', p .. 'idle:' .. model, tenant) end
    redis.call('ZADD', p .. 'fair:' .. model, text(math.max(clock, own)), tenant)
end

-- A tenant's line is empty. When nobody waits any more, all begin anew.
local function deactivate(p, model, tenant, time)
    redis.call('ZREM', p .. 'fair:' .. model, tenant)
    if redis.call('EXISTS', p .. 'fair:' .. model) == 0 then
        redis.call('DEL', p .. 'idle:' .. model)
        redis.call('HDEL', p .. 'clock', model)
    elseif time then
        redis.call('ZADD', p .. 'idle:' .. model, text(time), tenant)
    end
end

local function enter_line(b, model, tenant, place, id)
    redis.call('ZADD', b.p .. 'line:' .. model .. ':' .. tenant, place, id)
    activate(b.p, model, tenant)
    b.wake[model] = true
end

local function leave_line(p, model, tenant, id)
    local line = p .. 'line:' .. model .. ':' .. tenant
    if redis.call('ZREM', line, id) == 1 and redis.call('EXISTS', line) == 0 then
        deactivate(p, model, tenant, tonumber(redis.call('ZSCORE', p .. 'fair:' .. model, tenant) or '0'))
    end
end

-- What a job took more than it was charged when it was begun.
local function charge(p, model, tenant, by)
    if redis.call('ZSCORE', p .. 'fair:' .. model, tenant) then
        redis.call('ZINCRBY', p .. 'fair:' .. model, text(by), tenant)
    elseif redis.call('ZSCORE', p .. 'idle:' .. model, tenant) then
        redis.call('ZINCRBY', p .. 'idle:' .. model, text(by), tenant)
    end
end

---- attempts and ends ----

local function cut(s, n)
    if #s <= n then return s end
    return (string.gsub(string.sub(s, 1, n), '[\192-\255][\128-\191]*$', ''))
end

-- One attempt that came to nothing, for the message of the job's end; and the evidence, for whoever looks at
-- the job in quarantine.
local function history(p, id, attempt, reason, message, worker, now)
    local job = p .. 'job:' .. id
    local old = redis.call('HMGET', job, 'history', 'evidence')
    local w = redis.call('HMGET', p .. 'worker:' .. worker, 'device', 'log')
    local all = (old[1] and old[1] .. '; ' or '') .. attempt .. ': ' .. reason .. ', ' .. cut(message, 120)
    local evidence = 'attempt ' .. attempt .. ' at ' .. ms(now) .. ' on ' .. worker .. ', device ' ..
        (w[1] or 'unknown') .. ': ' .. reason .. ', ' .. message .. '\n' .. (w[2] or '')
    redis.call('HSET', job, 'history', all, 'evidence', (old[2] or '') .. cut(evidence, EVIDENCE_BYTES) .. '\n')
    return all
end

-- Ends a job; v: HMGET of END_FIELDS. `...`: further fields.
local END_FIELDS = { 'model', 'image', 'ttl', 'tenant', 'request_id', 'state' }
local function finish_with(b, id, state, now, v, ...)
    local p = b.p
    local m = b.memo[v[3]] -- numbers that many jobs have in common: a format is as dear as a command
    if not m then
        local expire = now + tonumber(v[3]) * 1000
        m = { text(now), text(expire), ms_up(expire) }
        b.memo[v[3]] = m
    end
    redis.call('HSET', p .. 'job:' .. id, 'state', state, 'finished', m[1], 'expire', m[2], 'cancel', '', ...)
    redis.call('PEXPIRE', p .. 'job:' .. id, v[3])
    later_ready(b, v[1], -1)
    later_remove(b, 'ZREM', 'live', id)
    if v[6] == 'RUNNING' then
        later_remove(b, 'ZREM', 'leases', id)
    elseif redis.call('ZREM', p .. 'delayed', id) == 0 then
        leave_line(p, v[1], v[4], id)
    end
    redis.call('HINCRBY', p .. 'image_use', v[2], -1)
    later_incr(b, 'tenant_jobs', v[4], -1)
    later_zadd(b, 'ended', m[3], v[4] .. ':' .. id .. ':' .. v[5])
    later_incr(b, 'count', state, 1)
    event(b, id, state)
end

local function finish(b, id, state, now, ...)
    finish_with(b, id, state, now, redis.call('HMGET', b.p .. 'job:' .. id, unpack(END_FIELDS)), ...)
end

-- A job that failed at its last attempt, kept for somebody to look at: its image stays, too.
local function quarantine(p, id, now)
    local v = redis.call('HMGET', p .. 'job:' .. id, 'tenant', 'model', 'image', 'spec', 'ttl', 'attempts', 'evidence',
        'reason', 'message', 'request_id')
    redis.call('HSET', p .. 'case:' .. id, 'tenant', v[1], 'model', v[2], 'image', v[3], 'spec', v[4], 'ttl', v[5],
        'attempts', v[6], 'evidence', v[7] or '', 'reason', v[8] or '', 'message', v[9] or '', 'request_id', v[10],
        'at', text(now))
    redis.call('HINCRBY', p .. 'image_use', v[3], 1)
    redis.call('ZADD', p .. 'quarantine', ms(now + CASE_KEPT_US), id)
end

-- Back into line, at its old place, after an attempt that came to nothing or was handed back.
local function requeue(b, id, now, delay_ms, ...)
    local p, job = b.p, b.p .. 'job:' .. id
    local v = redis.call('HMGET', job, 'model', 'tenant', 'place')
    later_remove(b, 'ZREM', 'leases', id)
    redis.call('HSET', job, 'state', 'QUEUED', 'worker', '', ...)
    if delay_ms > 0 then
        redis.call('ZADD', p .. 'delayed', ms_up(now + delay_ms * 1000), id)
    else
        enter_line(b, v[1], v[2], v[3], id)
    end
    event(b, id, 'QUEUED')
end

---- images ----

-- Images that nobody has used for their time to live. One that a live job uses gets another such time, and is marked:
-- the next look at all live jobs that begins (check_images) finds out whether there is such a job.
local function purge_images(p, now, limit, ttl_ms)
    local due = redis.call('ZRANGEBYSCORE', p .. 'images', '-inf', ms(now), 'LIMIT', 0, limit)
    for _, image in ipairs(due) do
        if tonumber(redis.call('HGET', p .. 'image_use', image) or '0') > 0 then
            redis.call('ZADD', p .. 'images', ms_up(now + ttl_ms * 1000), image)
            redis.call('HSETNX', p .. 'image_check', image, tonumber(redis.call('HGET', p .. 'count', 'pass') or '0') + 1)
        else
            local size = redis.call('STRLEN', p .. 'image:' .. image)
            redis.call('UNLINK', p .. 'image:' .. image)
            redis.call('ZREM', p .. 'images', image)
            redis.call('HDEL', p .. 'image_use', image)
            redis.call('DECRBY', p .. 'bytes', text(size))
            local tenant = string.match(image, '^([^:]*):')
            if redis.call('HINCRBY', p .. 'tenant_bytes', tenant, text(-size)) <= 0 then
                redis.call('HDEL', p .. 'tenant_bytes', tenant)
            end
        end
    end
    return #due
end

-- Stores image bytes within the bounds; nil if good, else an error reply. tenant_max: 0: none.
local function store_image(b, tenant, image, data, max_bytes, tenant_max, ttl_ms, now)
    local p = b.p
    local held = tonumber(redis.call('GET', p .. 'bytes') or '0')
    if held + #data > max_bytes then
        purge_images(p, now, 1000, ttl_ms)
        held = tonumber(redis.call('GET', p .. 'bytes') or '0')
    end
    if held + #data > max_bytes then
        return fail('QUEUE_FULL', 'an image of ' .. #data .. ' bytes does not fit: ' .. text(held) ..
            ' of ' .. text(max_bytes) .. ' bytes are held; try again later')
    end
    if tenant_max > 0 then
        local own = tonumber(redis.call('HGET', p .. 'tenant_bytes', tenant) or '0')
        if own + #data > tenant_max then
            return fail('TENANT_LIMIT', 'an image of ' .. #data .. ' bytes does not fit: ' .. text(own) ..
                ' of ' .. text(tenant_max) .. ' bytes of tenant ' .. tenant .. ' are held; try again later')
        end
    end
    redis.call('SET', p .. 'image:' .. image, data)
    redis.call('INCRBY', p .. 'bytes', #data)
    redis.call('HINCRBY', p .. 'tenant_bytes', tenant, #data)
    local m = b.memo.image or ms_up(now + ttl_ms * 1000)
    b.memo.image = m
    later_zadd(b, 'images', m, image)
    return nil
end

---- mending ----
-- What a function writes is one transaction in Redis' log. But Redis 7.0 leaves the torn half of one in the log if its
-- disk fills in the middle of a write, and runs it at the start after next. So a waiting job may be in no line, an image
-- may count a user that is not there, and a record may lie where nothing leads to it.

local function mend(b, id)
    local p = b.p
    local v = redis.call('HMGET', p .. 'job:' .. id, 'state', 'model', 'tenant', 'place', 'deadline', 'ttl')
    if v[1] ~= 'QUEUED' or not v[2] or not v[3] or not v[4] or not v[5] or not v[6] then return false end
    if redis.call('ZSCORE', p .. 'line:' .. v[2] .. ':' .. v[3], id) or redis.call('ZSCORE', p .. 'delayed', id) then
        return false
    end
    if redis.call('ZADD', p .. 'live', 'NX', ms_up(tonumber(v[5])), id) == 1 then
        later_ready(b, v[2], 1)
        later_incr(b, 'tenant_jobs', v[3], 1)
    end
    redis.call('ZADD', p .. 'index:' .. v[3], 0, id)
    enter_line(b, v[2], v[3], v[4], id)
    return true
end

-- Marked images that no live job used in the whole of a pass: what is left are cases in quarantine. A submit takes the
-- mark off (a scan need not show what comes while it runs), so does a job that is seen.
local function check_images(p, pass, now)
    local marked = redis.call('HGETALL', p .. 'image_check')
    local uses, n = {}, 0
    for i = 1, #marked, 2 do
        if tonumber(marked[i + 1]) <= pass then
            uses[marked[i]] = 0
            n = n + 1
        end
    end
    if n == 0 then return end
    for _, id in ipairs(redis.call('ZRANGE', p .. 'quarantine', 0, -1)) do
        local image = redis.call('HGET', p .. 'case:' .. id, 'image')
        if image and uses[image] then uses[image] = uses[image] + 1 end
    end
    for image, use in pairs(uses) do
        if use > 0 then
            redis.call('HSET', p .. 'image_use', image, text(use))
        else
            redis.call('HDEL', p .. 'image_use', image)
            redis.call('ZADD', p .. 'images', 'XX', ms(now), image)
        end
        redis.call('HDEL', p .. 'image_check', image)
    end
end

-- A job that has ended, but not all of its end was written.
local function mend_end(p, id, now)
    local v = redis.call('HMGET', p .. 'job:' .. id, 'tenant', 'request_id', 'ttl')
    if not v[1] or not v[2] or not v[3] then
        redis.call('UNLINK', p .. 'job:' .. id)
        return
    end
    if redis.call('PTTL', p .. 'job:' .. id) < 0 then redis.call('PEXPIRE', p .. 'job:' .. id, v[3]) end
    redis.call('ZADD', p .. 'ended', 'NX', ms_up(now + tonumber(v[3]) * 1000), v[1] .. ':' .. id .. ':' .. v[2])
end

-- A few of all keys at each sweep, in turn: records without an end that are not among the live jobs.
local function mend_lost(b, limit, now)
    local p, key = b.p, b.p .. 'count'
    local got = redis.call('SCAN', redis.call('HGET', key, 'scanned') or '0', 'MATCH', p .. 'job:*', 'COUNT', limit)
    for _, job in ipairs(got[2]) do
        local id = string.sub(job, #p + 5)
        if redis.call('PTTL', job) == -1 and not redis.call('ZSCORE', p .. 'live', id) then
            local v = redis.call('HMGET', job, 'state', 'deadline', 'tenant', 'model')
            if v[1] == 'RUNNING' and v[2] and v[3] and v[4] then
                redis.call('ZADD', p .. 'live', ms_up(tonumber(v[2])), id)
                redis.call('ZADD', p .. 'leases', 'NX', ms(now), id)
                later_ready(b, v[4], 1)
                later_incr(b, 'tenant_jobs', v[3], 1)
            elseif not mend(b, id) then
                mend_end(p, id, now)
            end
        end
    end
    redis.call('HSET', key, 'scanned', got[1])
end

-- A few of the live jobs at each sweep, all of them in turn: a pass, by its number.
local function mend_some(b, limit, now)
    local p, key = b.p, b.p .. 'count'
    local v = redis.call('HMGET', key, 'mended', 'pass')
    local cursor, pass = v[1] or '0', tonumber(v[2] or '0')
    local has_marks = redis.call('EXISTS', p .. 'image_check') == 1
    if cursor == '0' then pass = pass + 1 end
    local got = redis.call('ZSCAN', p .. 'live', cursor, 'COUNT', limit)
    for i = 1, #got[2], 2 do
        mend(b, got[2][i])
        if has_marks then
            local image = redis.call('HGET', p .. 'job:' .. got[2][i], 'image')
            if image then redis.call('HDEL', p .. 'image_check', image) end
        end
    end
    redis.call('HSET', key, 'mended', got[1], 'pass', text(pass))
    if has_marks and got[1] == '0' then check_images(p, pass, now) end
end

---- for schedulers ----

-- At most `rate` jobs a second and `burst` at once, by the generic cell rate algorithm (ATM Forum TM 4.0):
-- one number, the time at which a steady stream would be due next. nil if good, else an error reply.
local function check_rate(p, tenant, rate, burst, now)
    local interval = 1000000 / rate
    local due = math.max(tonumber(redis.call('ZSCORE', p .. 'tenant_rate', tenant) or '0'), now)
    local early = due - now - (burst - 1) * interval
    if early > 0 then
        return fail('TENANT_LIMIT', 'tenant ' .. tenant .. ' submits more than ' .. rate ..
            ' jobs a second; try again in ' .. text(math.ceil(early / 1000)) .. ' ms')
    end
    redis.call('ZADD', p .. 'tenant_rate', text(due + interval), tenant)
    return nil
end

-- A job that is there already, if this asks for it again: its answer, or an error reply; nil: it is new.
local function repeated(b, j)
    local p = b.p
    local existing = redis.call('HGET', p .. 'job:' .. j.id, 'tenant')
    if existing then
        -- The same call made twice, its first answer having been lost.
        if existing ~= j.tenant then return fail('INTERNAL', 'job id ' .. j.id .. ' is taken') end
        mend(b, j.id)
        local v = view(p, j.id)
        table.insert(v, 1, 0)
        return v
    end
    local old = j.request_id ~= '' and redis.call('GET', p .. 'request:' .. j.tenant .. ':' .. j.request_id)
    if not old then return nil end
    local id, fingerprint = string.sub(old, 1, 32), string.sub(old, 34)
    if redis.call('EXISTS', p .. 'job:' .. id) == 0 then return nil end
    if fingerprint ~= j.fingerprint then
        return fail('REQUEST_ID_REUSED', 'request_id "' .. j.request_id ..
            '" was used for a job with other content; take a new one')
    end
    mend(b, id)
    local v = view(p, id)
    table.insert(v, 1, 0)
    return v
end

local function check_model(p, j)
    if j.is_default or tonumber(redis.call('ZSCORE', p .. 'models', j.model) or '0') ~= 0 then return nil end
    local known = redis.call('ZREVRANGEBYSCORE', p .. 'models', '+inf', '(0', 'LIMIT', 0, 10)
    return fail('MODEL_UNKNOWN', 'model "' .. j.model .. '" is served by no worker; known: ' ..
        (#known > 0 and table.concat(known, ', ') or 'none'))
end

-- s: of this call: now, place (the last one given), live, and the bounds.
local function submit_one(b, s, j)
    local p, now = b.p, s.now
    local known = repeated(b, j)
    if known then return known end
    if not s.models[j.model] then
        local unknown = check_model(p, j)
        if unknown then return unknown end
        s.models[j.model] = true
        redis.call('ZADD', p .. 'models', 'NX', 0, j.model)
    end
    if s.live >= s.max_jobs then
        return fail('QUEUE_FULL', text(s.live) .. ' jobs are alive, the limit is ' .. text(s.max_jobs) ..
            '; try again later')
    end
    if j.max_jobs > 0 then
        local own = tonumber(redis.call('HGET', p .. 'tenant_jobs', j.tenant) or '0') +
            (b.incr.tenant_jobs and b.incr.tenant_jobs[j.tenant] or 0)
        if own >= j.max_jobs then
            return fail('TENANT_LIMIT', text(own) .. ' jobs of tenant ' .. j.tenant .. ' are alive, its limit is ' ..
                text(j.max_jobs) .. '; try again later')
        end
    end
    local image = j.tenant .. ':' .. j.sha256
    local is_held = redis.call('EXISTS', p .. 'image:' .. image) == 1
    if not is_held and j.content == '' then
        return fail('IMAGE_NOT_HELD', 'image ' .. j.sha256 .. ' is not held; upload it and repeat')
    end
    if j.rate > 0 then
        local fast = check_rate(p, j.tenant, j.rate, j.burst, now)
        if fast then return fast end
    end
    if is_held then
        redis.call('ZADD', p .. 'images', 'GT', s.image_expire, image)
    else
        local full = store_image(b, j.tenant, image, j.content, s.max_bytes, j.max_bytes, s.image_ttl_ms, now)
        if full then return full end
    end
    redis.call('HINCRBY', p .. 'image_use', image, 1)
    if s.has_marks then redis.call('HDEL', p .. 'image_check', image) end
    local latest = now + s.max_age_ms * 1000
    local deadline = j.deadline
    if deadline <= 0 or deadline > latest then deadline = latest end
    s.place = math.max(s.place + 1, now)
    s.live = s.live + 1
    local place = text(s.place - j.priority * HEAD_START_US)
    local created, until_ = s.created, deadline == latest and s.latest or text(deadline)
    local more = {}
    if j.weight ~= 1 then more = { 'weight', text(j.weight) } end
    redis.call('HSET', p .. 'job:' .. j.id, 'tenant', j.tenant, 'request_id', j.request_id, 'state', 'QUEUED',
        'spec', j.spec, 'model', j.model, 'image', image, 'created', created, 'deadline', until_, 'ttl', j.ttl,
        'attempts', '0', 'fence', '0', 'place', place, unpack(more))
    later_zadd(b, 'live', deadline == latest and s.latest_ms or ms_up(deadline), j.id)
    later_ready(b, j.model, 1)
    b.wake[j.model] = true
    later_zadd(b, 'index:' .. j.tenant, 0, j.id)
    later_zadd(b, 'line:' .. j.model .. ':' .. j.tenant, place, j.id)
    s.lines[j.model .. ':' .. j.tenant] = { j.model, j.tenant }
    if j.request_id ~= '' then
        redis.call('SET', p .. 'request:' .. j.tenant .. ':' .. j.request_id, j.id .. ' ' .. j.fingerprint)
    end
    later_incr(b, 'tenant_jobs', j.tenant, 1)
    later_incr(b, 'count', 'submitted', 1)
    return { 1, j.id, j.tenant, j.request_id, 'QUEUED', j.spec, '', '', '', '0', '', created, '', '', until_, '',
        j.ttl, j.model, image, '' }
end

-- max_age_ms max_jobs max_bytes image_ttl_ms {tenant id request_id fingerprint model is_default sha256 spec
-- content deadline_us ttl_ms priority weight tenant_jobs tenant_bytes tenant_rate tenant_burst}...
-- ->  per job {1 if new, job view...} or an error
local SUBMIT_ARGS = 17
local function submit(keys, a)
    local p, b, out = keys[1], batch(keys[1]), {}
    local s = { now = now_us(), max_age_ms = tonumber(a[1]), max_jobs = tonumber(a[2]), max_bytes = tonumber(a[3]),
        image_ttl_ms = tonumber(a[4]), has_marks = redis.call('EXISTS', p .. 'image_check') == 1, live = redis.call('ZCARD', p .. 'live'), models = {}, lines = {},
        place = tonumber(redis.call('HGET', p .. 'count', 'place') or '0') }
    local latest = s.now + s.max_age_ms * 1000
    s.created, s.latest, s.latest_ms = text(s.now), text(latest), ms_up(latest)
    s.image_expire = ms_up(s.now + s.image_ttl_ms * 1000)
    for i = 5, #a, SUBMIT_ARGS do
        local j = { tenant = a[i], id = a[i + 1], request_id = a[i + 2], fingerprint = a[i + 3], model = a[i + 4],
            is_default = a[i + 5] == '1', sha256 = a[i + 6], spec = a[i + 7], content = a[i + 8],
            deadline = tonumber(a[i + 9]), ttl = a[i + 10], priority = tonumber(a[i + 11]),
            weight = tonumber(a[i + 12]), max_jobs = tonumber(a[i + 13]), max_bytes = tonumber(a[i + 14]),
            rate = tonumber(a[i + 15]), burst = tonumber(a[i + 16]) }
        out[#out + 1] = submit_one(b, s, j)
    end
    -- Also when nothing is new: a repeat must write, or WAIT would not wait for what it repeats.
    redis.call('HSET', p .. 'count', 'place', text(s.place))
    write(b)
    for _, line in pairs(s.lines) do activate(p, line[1], line[2]) end
    return out
end

-- tenant sha256 data max_bytes image_ttl_ms tenant_bytes  ->  {existed, size, expire_ms}
local function put_image(keys, a)
    local p, image, now = keys[1], a[1] .. ':' .. a[2], now_us()
    local expire = ms_up(now + tonumber(a[5]) * 1000)
    if redis.call('EXISTS', p .. 'image:' .. image) == 1 then
        redis.call('ZADD', p .. 'images', 'GT', expire, image)
        return { 1, redis.call('STRLEN', p .. 'image:' .. image), expire }
    end
    local b = batch(p)
    local full = store_image(b, a[1], image, a[3], tonumber(a[4]), tonumber(a[6] or '0'), tonumber(a[5]), now)
    if full then return full end
    write(b)
    return { 0, #a[3], expire }
end

-- tenant image_ttl_ms sha256...  ->  per image {size or 0, expire_ms}; held ones live longer by it
local function has_images(keys, a)
    local p, now, out = keys[1], now_us(), {}
    local expire = ms_up(now + tonumber(a[2]) * 1000)
    for i = 3, #a do
        local image = a[1] .. ':' .. a[i]
        local held = redis.call('EXISTS', p .. 'image:' .. image) == 1
        if held then redis.call('ZADD', p .. 'images', 'GT', expire, image) end
        out[#out + 1] = held and redis.call('STRLEN', p .. 'image:' .. image) or 0
        out[#out + 1] = held and expire or '0'
    end
    return out
end

-- tenant id...  ->  one view per job that is the tenant's; an empty list for any other
local function get(keys, a)
    local out = {}
    for i = 2, #a do
        local v = view(keys[1], a[i])
        out[#out + 1] = v[2] == a[1] and v or {}
    end
    return out
end

-- tenant after_id limit  ->  {next id or '', views...}. Newest first: ids sort by time.
local function list(keys, a)
    local p, index = keys[1], keys[1] .. 'index:' .. a[1]
    local limit = tonumber(a[3])
    local ids = redis.call('ZREVRANGEBYLEX', index, a[2] == '' and '+' or '(' .. a[2], '-', 'LIMIT', 0, limit)
    local out = { #ids == limit and ids[#ids] or '' }
    for _, id in ipairs(ids) do
        local v = view(p, id)
        if v[2] == a[1] then out[#out + 1] = v end
    end
    return out
end

-- tenant id prompt_index...  ->  {view, mask or nil...}
local function masks(keys, a)
    local p, v = keys[1], view(keys[1], a[2])
    if v[2] ~= a[1] then return { {} } end
    local out = { v }
    for i = 3, #a do out[#out + 1] = redis.call('HGET', p .. 'job:' .. a[2], 'mask' .. a[i]) end
    return out
end

-- tenant id  ->  view
local function cancel(keys, a)
    local p, job = keys[1], keys[1] .. 'job:' .. a[2]
    if redis.call('HGET', job, 'tenant') ~= a[1] then return {} end
    local state = redis.call('HGET', job, 'state')
    if state == 'QUEUED' then
        local b = batch(p)
        finish(b, a[2], 'CANCELLED', now_us())
        write(b)
    elseif state == 'RUNNING' then
        redis.call('HSET', job, 'cancel', '1')
    end
    return view(p, a[2])
end

-- worker lease_ms model digest device version log  ->  OK. Also made at every heartbeat. log: its last lines,
-- evidence if it is killed.
local function register(keys, a)
    local p, now = keys[1], now_us()
    local expire = now / 1000 + math.max(3 * tonumber(a[2]), 30000)
    redis.call('HSET', p .. 'worker:' .. a[1], 'model', a[3], 'digest', a[4], 'device', a[5], 'version', a[6],
        'seen', text(now), 'log', a[7] or '')
    redis.call('PEXPIREAT', p .. 'worker:' .. a[1], text(expire + WORKER_KEPT_MS))
    redis.call('ZADD', p .. 'workers', text(expire), a[1])
    redis.call('ZADD', p .. 'models', ms(now), a[3])
    return redis.status_reply('OK')
end

local function forget_worker(p, id)
    redis.call('DEL', p .. 'worker:' .. id)
    redis.call('ZREM', p .. 'workers', id)
end

-- worker  ->  OK. A worker that ends in peace.
local function unregister(keys, a)
    forget_worker(keys[1], a[1])
    return redis.status_reply('OK')
end

-- ->  per live worker {id, model, digest, device, version}
local function workers(keys)
    local p, out = keys[1], {}
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'workers', ms(now_us()), '+inf')) do
        local v = redis.call('HMGET', p .. 'worker:' .. id, 'model', 'digest', 'device', 'version')
        if v[1] then out[#out + 1] = { id, v[1], v[2] or '', v[3] or '', v[4] or '' } end
    end
    return out
end

-- Takes job `id` off the line of c.tenant. false: it must wait until the worker's hands are empty.
local CLAIM_FIELDS = { 'state', 'deadline', 'attempts', 'tenant', 'spec', 'image', 'created', 'fence', 'weight', 'group' }
local function claim_one(b, c, id)
    local p, job = b.p, b.p .. 'job:' .. id
    local v = redis.call('HMGET', job, unpack(CLAIM_FIELDS))
    if v[1] ~= 'QUEUED' then return true end
    if tonumber(v[2]) <= c.now then
        finish(b, id, 'EXPIRED', c.now)
        return true
    end
    -- A job of a group that died with its worker is tried among fewer.
    local group = tonumber(v[10] or '0')
    if group > 0 and c.held >= group then return false end
    if group > 0 then c.most = math.min(c.most, group) end
    local fence, attempt = tostring(tonumber(v[8]) + 1), tostring(tonumber(v[3]) + 1)
    local price = c.cost / tonumber(v[9] or '1')
    redis.call('HSET', job, 'state', 'RUNNING', 'worker', c.worker, 'started', c.started, 'attempts', attempt,
        'fence', fence, 'charge', c.charge)
    later_zadd(b, 'leases', c.lease, id)
    event(b, id, 'RUNNING', c.worker)
    c.out[#c.out + 1] = { id, tonumber(fence), tonumber(attempt), v[4], v[5], v[6], v[2], v[7], group }
    c.held = c.held + 1
    return true, price
end

-- One or, if the tenant is alone, all that are wanted. false: nothing more is to be given.
local function claim_from(b, c, tenant, alone)
    local p, line = b.p, b.p .. 'line:' .. c.model .. ':' .. tenant.name
    local got = redis.call('ZPOPMIN', line, alone and c.most - c.held or 1)
    for i = 1, #got, 2 do
        local goes, price = true, nil
        if c.held < c.most then goes, price = claim_one(b, c, got[i]) else goes = false end
        if not goes then
            for k = i, #got, 2 do redis.call('ZADD', line, got[k + 1], got[k]) end
            return false
        end
        if price then
            c.clock = math.max(c.clock, tenant.time)
            tenant.time = tenant.time + price
            tenant.changed = true
        end
    end
    if redis.call('EXISTS', line) == 0 then
        tenant.gone = true
        deactivate(p, c.model, tenant.name, tenant.time)
    end
    return true
end

-- worker model max lease_ms - held  ->  per job {id, fence, attempt, tenant, spec, image, deadline, created,
-- group}. held: how many jobs the worker has already. group: with how many at most it may be held at once, 0: any.
local function claim(keys, a)
    local p, b = keys[1], batch(keys[1])
    local held = tonumber(a[6] or '0')
    local now = now_us()
    local c = { worker = a[1], model = a[2], held = held, most = held + tonumber(a[3]), now = now, out = {}, clock = 0,
        lease = ms_up(now + tonumber(a[4]) * 1000) }
    local found = redis.call('ZRANGE', p .. 'fair:' .. c.model, 0, tonumber(a[3]), 'WITHSCORES')
    if #found == 0 then return {} end
    c.cost = tonumber(redis.call('HGET', p .. 'cost', c.model) or '0')
    if c.cost <= 0 then c.cost = FIRST_COST_US end
    c.started, c.charge = text(now), text(c.cost)
    local tenants = {}
    for i = 1, #found, 2 do tenants[#tenants + 1] = { name = found[i], time = tonumber(found[i + 1]) } end
    while c.held < c.most do
        local first, n = nil, 0
        for _, t in ipairs(tenants) do
            if not t.gone then
                n = n + 1
                if not first or t.time < first.time then first = t end
            end
        end
        if not first or not claim_from(b, c, first, n == 1) then break end
    end
    local others = #tenants > tonumber(a[3]) -- beyond those looked at
    for _, t in ipairs(tenants) do
        if not t.gone then others = true end
        if t.changed and not t.gone then later_zadd(b, 'fair:' .. c.model, text(t.time), t.name) end
    end
    if #tenants > 1 and others and c.clock > 0 then redis.call('HSET', p .. 'clock', c.model, text(c.clock)) end
    write(b)
    return c.out
end

-- worker lease_ms {id fence}...  ->  per job: ok, lost, cancel or expired
local function renew(keys, a)
    local p, b, out, now = keys[1], batch(keys[1]), {}, now_us()
    local expire = ms_up(now + tonumber(a[2]) * 1000)
    for i = 3, #a, 2 do
        local answer = 'ok'
        local v = redis.call('HMGET', p .. 'job:' .. a[i], 'state', 'worker', 'fence', 'cancel', 'deadline')
        if v[1] ~= 'RUNNING' or v[2] ~= a[1] or v[3] ~= a[i + 1] then
            answer = v[1] == 'EXPIRED' and 'expired' or 'lost'
        elseif tonumber(v[5]) <= now then
            finish(b, a[i], 'EXPIRED', now)
            answer = 'expired'
        else
            later_zadd(b, 'leases', expire, a[i])
            if v[4] == '1' then answer = 'cancel' end
        end
        out[#out + 1] = answer
    end
    write(b)
    return out
end

local function lost(id, worker)
    return fail('LEASE_LOST', 'worker ' .. worker .. ' no longer holds job ' .. id .. '; its result is dropped')
end

-- The mean that a job of a model takes, for the charge of the next ones.
local function learn_cost(p, costs)
    for model, c in pairs(costs) do
        local old = tonumber(redis.call('HGET', p .. 'cost', model) or '0')
        local mean = c.sum / c.n
        if old > 0 then mean = old + (mean - old) * math.min(0.5, c.n / 64) end
        redis.call('HSET', p .. 'cost', model, text(math.max(1, mean)))
    end
end

local PUBLISH_FIELDS = { 'model', 'image', 'ttl', 'tenant', 'request_id', 'state', 'worker', 'fence', 'by',
    'cancel', 'deadline', 'charge', 'weight', 'reason' }
local function publish_one(b, costs, now, worker, id, fence, cost, result, masks)
    local v = redis.call('HMGET', b.p .. 'job:' .. id, unpack(PUBLISH_FIELDS))
    local me = worker .. ' ' .. fence
    if v[6] ~= 'RUNNING' or v[7] ~= worker or v[8] ~= fence then
        if v[9] == me and TERMINAL[v[6]] then return v[6] end
        return lost(id, worker)
    end
    if v[10] == '1' then
        finish_with(b, id, 'CANCELLED', now, v, 'by', me)
        return 'CANCELLED'
    elseif tonumber(v[11]) <= now then
        finish_with(b, id, 'EXPIRED', now, v, 'by', me)
        return 'EXPIRED'
    end
    if v[14] and v[14] ~= '' then
        masks[#masks + 1] = 'reason'
        masks[#masks + 1] = ''
        masks[#masks + 1] = 'message'
        masks[#masks + 1] = ''
    end
    finish_with(b, id, 'SUCCEEDED', now, v, 'by', me, 'result', result, unpack(masks))
    if cost > 0 then
        local of = costs[v[1]] or { sum = 0, n = 0, tenants = {} }
        costs[v[1]] = of
        of.sum, of.n = of.sum + cost, of.n + 1
        of.tenants[v[4]] = (of.tenants[v[4]] or 0) + (cost - tonumber(v[12] or '0')) / tonumber(v[13] or '1')
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

---- the sweep ----

-- Models that nobody serves or asks for any more, and workers that are gone.
local function tidy(p, now, limit)
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'workers', '-inf', ms(now), 'LIMIT', 0, limit)) do
        forget_worker(p, id)
    end
    local models = redis.call('ZRANGE', p .. 'models', 0, limit, 'WITHSCORES')
    for i = 1, #models, 2 do
        local model, seen = models[i], tonumber(models[i + 1])
        if seen * 1000 < now - MODEL_KEPT_US and redis.call('LLEN', p .. 'ready:' .. model) == 0 then
            redis.call('ZREM', p .. 'models', model)
            redis.call('DEL', p .. 'wake:' .. model, p .. 'idle:' .. model)
            redis.call('HDEL', p .. 'clock', model)
            redis.call('HDEL', p .. 'cost', model)
        end
    end
    redis.call('ZREMRANGEBYSCORE', p .. 'tenant_rate', '-inf', text(now))
end

-- Leases that have ended, by worker; and with them those that the same worker has not renewed for as long as half
-- a lease: a living one renews all it holds three times in a lease.
local function dead_leases(p, now, limit, lease_ms)
    local stale = redis.call('ZRANGEBYSCORE', p .. 'leases', '-inf', ms(now), 'LIMIT', 0, limit)
    local groups, order = {}, {}
    if #stale == 0 then return groups, order end
    local all = redis.call('ZRANGEBYSCORE', p .. 'leases', '-inf', ms(now + lease_ms * 500), 'LIMIT', 0, 10 * limit)
    for i, id in ipairs(all) do
        local v = redis.call('HMGET', p .. 'job:' .. id, 'attempts', 'worker', 'cancel', 'deadline', 'group', 'history')
        local worker = v[2] or ''
        local g = groups[worker]
        if not g and i <= #stale then
            g = {}
            groups[worker] = g
            order[#order + 1] = worker
        end
        if g then g[#g + 1] = { id = id, v = v, is_stale = i <= #stale } end
    end
    return groups, order
end

-- What becomes of a job whose worker went silent while it held n. One of several is not charged: which of them did
-- it is found by trying them among ever fewer. Nor is one whose worker lives: it never heard of its claim.
local function lease_ended(b, now, worker, one, n, max_attempts, alive)
    local p, id, v = b.p, one.id, one.v
    local why = 'worker ' .. worker .. ' went away during attempt ' .. (v[1] or '')
    if not v[1] then
        later_remove(b, 'ZREM', 'leases', id)
    elseif v[3] == '1' then
        finish(b, id, 'CANCELLED', now)
    elseif tonumber(v[4]) <= now then
        finish(b, id, 'EXPIRED', now)
    elseif alive then
        requeue(b, id, now, 0, 'attempts', text(tonumber(v[1]) - 1))
    elseif n > 1 and v[5] ~= '1' then
        local group = math.ceil(n / 2)
        if v[5] and tonumber(v[5]) > 0 then group = math.min(group, math.max(1, tonumber(v[5]) - 1)) end
        requeue(b, id, now, 0, 'reason', 'LEASE_LOST', 'message', why .. ', with ' .. (n - 1) .. ' others',
            'attempts', text(tonumber(v[1]) - 1), 'group', group)
    elseif tonumber(v[1]) >= max_attempts then
        history(p, id, v[1], 'LEASE_LOST', why, worker, now)
        give_up(b, id, now, 'ATTEMPTS_EXHAUSTED', why .. ', the last of ' .. text(max_attempts) ..
            (v[6] and ' (before: ' .. v[6] .. ')' or ''))
    else
        history(p, id, v[1], 'LEASE_LOST', why, worker, now)
        requeue(b, id, now, 0, 'reason', 'LEASE_LOST', 'message', why)
    end
end

local function sweep_leases(b, now, limit, max_attempts, lease_ms)
    local p, n = b.p, 0
    -- If the clock has been set back, a lease may seem to last for hours.
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'leases', '(' .. ms_up(now + lease_ms * 1000 + 1000), '+inf',
        'LIMIT', 0, limit)) do
        redis.call('ZADD', p .. 'leases', ms_up(now + lease_ms * 1000), id)
    end
    local groups, order = dead_leases(p, now, limit, lease_ms)
    for _, worker in ipairs(order) do
        local g = groups[worker]
        local seen = tonumber(redis.call('HGET', p .. 'worker:' .. worker, 'seen') or '0')
        local alive = seen > now - lease_ms * 500
        for _, one in ipairs(g) do
            if one.is_stale or not alive then lease_ended(b, now, worker, one, #g, max_attempts, alive) end
        end
        n = n + #g
    end
    return n
end

-- Records whose time has passed: they leave their tenant's list, and free their request ids.
local function sweep_ended(p, now, limit)
    local gone = redis.call('ZRANGEBYSCORE', p .. 'ended', '-inf', ms(now), 'LIMIT', 0, limit)
    local b = batch(p)
    for _, member in ipairs(gone) do
        local tenant, id, request_id = string.match(member, '^([^:]*):([^:]*):(.*)$')
        later_remove(b, 'ZREM', 'index:' .. tenant, id)
        later_remove(b, 'ZREM', 'ended', member)
        later_remove(b, 'UNLINK', 'job:' .. id, nil)
        if request_id ~= '' then
            local key = p .. 'request:' .. tenant .. ':' .. request_id
            if string.sub(redis.call('GET', key) or '', 1, 32) == id then redis.call('UNLINK', key) end
        end
    end
    write(b)
    return #gone
end

local function drop_case(p, id)
    local image = redis.call('HGET', p .. 'case:' .. id, 'image')
    if image then redis.call('HINCRBY', p .. 'image_use', image, -1) end
    redis.call('DEL', p .. 'case:' .. id)
    return redis.call('ZREM', p .. 'quarantine', id)
end

-- max_attempts limit lease_ms image_ttl_ms  ->  {due retries, ended leases, expired jobs, purged images}
local function sweep(keys, a)
    local p, b, now, limit = keys[1], batch(keys[1]), now_us(), tonumber(a[2])
    local due = redis.call('ZRANGEBYSCORE', p .. 'delayed', '-inf', ms(now), 'LIMIT', 0, limit)
    for _, id in ipairs(due) do
        redis.call('ZREM', p .. 'delayed', id)
        local v = redis.call('HMGET', p .. 'job:' .. id, 'state', 'model', 'tenant', 'place')
        if v[1] == 'QUEUED' then
            enter_line(b, v[2], v[3], v[4], id)
        end
    end
    local stale = sweep_leases(b, now, limit, tonumber(a[1]), tonumber(a[3] or '10000'))
    write(b)
    b = batch(p)
    local late = redis.call('ZRANGEBYSCORE', p .. 'live', '-inf', ms(now), 'LIMIT', 0, limit)
    for _, id in ipairs(late) do
        local state = redis.call('HGET', p .. 'job:' .. id, 'state')
        if not state or TERMINAL[state] then
            redis.call('ZREM', p .. 'live', id)
            if state then mend_end(p, id, now) end
        else
            finish(b, id, 'EXPIRED', now)
        end
    end
    write(b)
    b = batch(p)
    mend_some(b, 50, now)
    mend_lost(b, math.max(10, math.floor(limit / 10)), now)
    write(b)
    sweep_ended(p, now, limit)
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', p .. 'quarantine', '-inf', ms(now), 'LIMIT', 0, limit)) do
        drop_case(p, id)
    end
    tidy(p, now, limit)
    return { #due, stale, #late, purge_images(p, now, limit, tonumber(a[4] or '3600000')) }
end

---- quarantine ----

-- after_id limit  ->  per case {id, tenant, model, reason, message, attempts, at, evidence, request_id}; ids sort by
-- the time of the submit, newest first
local CASE_FIELDS = { 'tenant', 'model', 'reason', 'message', 'attempts', 'at', 'evidence', 'request_id' }
local function cases(keys, a)
    local p, out, all = keys[1], {}, redis.call('ZRANGE', keys[1] .. 'quarantine', 0, -1)
    table.sort(all, function(x, y) return x > y end)
    for _, id in ipairs(all) do
        if #out >= tonumber(a[2]) then break end
        if a[1] == '' or id < a[1] then
            local v = redis.call('HMGET', p .. 'case:' .. id, unpack(CASE_FIELDS))
            table.insert(v, 1, id)
            out[#out + 1] = v
        end
    end
    return out
end

-- id  ->  as one of `cases`, or an empty list
local function case(keys, a)
    local v = redis.call('HMGET', keys[1] .. 'case:' .. a[1], unpack(CASE_FIELDS))
    if not v[1] then return {} end
    table.insert(v, 1, a[1])
    return v
end

-- id  ->  1, or 0 if there is none
local function case_drop(keys, a)
    return drop_case(keys[1], a[1])
end

-- id new_id max_age_ms max_jobs max_bytes image_ttl_ms  ->  as submit for one job. The job itself has ended, and what
-- has ended stays so: its work is submitted anew, as job new_id.
local function case_requeue(keys, a)
    local p = keys[1]
    local v = redis.call('HMGET', p .. 'case:' .. a[1], 'tenant', 'model', 'image', 'spec', 'ttl')
    if not v[1] then return {} end
    local got = submit(keys, { a[3], a[4], a[5], a[6], v[1], a[2], '', '', v[2], '1',
        string.match(v[3], ':(.*)$'), v[4], '', '0', v[5], '0', '1', '0', '0', '0', '0' })
    if not got[1].err then drop_case(p, a[1]) end
    return got
end

-- ->  {live jobs, leased jobs, delayed jobs, image bytes held, submitted, succeeded, failed, cancelled, expired,
-- jobs in quarantine}
local function stats(keys)
    local p = keys[1]
    local c = redis.call('HMGET', p .. 'count', 'submitted', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'EXPIRED')
    local out = { redis.call('ZCARD', p .. 'live'), redis.call('ZCARD', p .. 'leases'),
        redis.call('ZCARD', p .. 'delayed'), tonumber(redis.call('GET', p .. 'bytes') or '0') }
    for i = 1, 5 do out[#out + 1] = tonumber(c[i] or '0') end
    out[#out + 1] = redis.call('ZCARD', p .. 'quarantine')
    return out
end

-- ->  the revision of this library.
local function revision() return REVISION end

local reads = { 'no-writes' }
-- What ends or moves a job must work when memory is full, for it is what frees memory.
local always = { 'allow-oom' }
redis.register_function { function_name = 'pseg1_revision', callback = revision, flags = reads }
redis.register_function('pseg1_submit', submit)
redis.register_function('pseg1_put_image', put_image)
redis.register_function { function_name = 'pseg1_has_images', callback = has_images, flags = always }
redis.register_function { function_name = 'pseg1_get', callback = get, flags = reads }
redis.register_function { function_name = 'pseg1_list', callback = list, flags = reads }
redis.register_function { function_name = 'pseg1_masks', callback = masks, flags = reads }
redis.register_function { function_name = 'pseg1_cancel', callback = cancel, flags = always }
redis.register_function { function_name = 'pseg1_register', callback = register, flags = always }
redis.register_function { function_name = 'pseg1_unregister', callback = unregister, flags = always }
redis.register_function { function_name = 'pseg1_workers', callback = workers, flags = reads }
redis.register_function { function_name = 'pseg1_claim', callback = claim, flags = always }
redis.register_function { function_name = 'pseg1_renew', callback = renew, flags = always }
redis.register_function { function_name = 'pseg1_publish', callback = publish, flags = always }
redis.register_function { function_name = 'pseg1_fail', callback = fail_job, flags = always }
redis.register_function { function_name = 'pseg1_release', callback = release, flags = always }
redis.register_function { function_name = 'pseg1_sweep', callback = sweep, flags = always }
redis.register_function { function_name = 'pseg1_stats', callback = stats, flags = reads }
redis.register_function { function_name = 'pseg1_cases', callback = cases, flags = reads }
redis.register_function { function_name = 'pseg1_case', callback = case, flags = reads }
redis.register_function { function_name = 'pseg1_case_drop', callback = case_drop, flags = always }
redis.register_function('pseg1_case_requeue', case_requeue)
