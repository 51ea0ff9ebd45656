---- submit ----

-- At most `rate` jobs a second and `burst` at once, by the generic cell rate algorithm (ATM Forum TM 4.0):
-- one number, the time at which a steady stream would be due next. nil if good, else an error reply.
local function check_rate(p, tenant, rate, burst, now)
    local interval = 1000000 / rate
    local due = math.max(tonumber(redis.call('ZSCORE', p .. 'tenant_rate', tenant) or '0'), now)
    if due > now + burst * interval then -- the clock has been set back
        due = now + burst * interval
        redis.call('ZADD', p .. 'tenant_rate', text(due), tenant)
    end
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

-- nil if the job is new and stored; else what is there already, or an error reply.
-- s: of this call: now, place (the last one given), live, and the bounds.
local function submit_one(b, s, j)
    local p, now = b.p, s.now
    local known = not j.batch and repeated(b, j)
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
    local is_held = s.images[image] or redis.call('EXISTS', p .. 'image:' .. image) == 1
    if not is_held and j.content == '' then
        return fail('IMAGE_NOT_HELD', 'image ' .. j.sha256 .. ' is not held; upload it and repeat')
    end
    if j.rate > 0 then
        local fast = check_rate(p, j.tenant, j.rate, j.burst, now)
        if fast then return fast end
    end
    if is_held and not s.images[image] then
        redis.call('ZADD', p .. 'images', 'GT', s.image_expire, image)
    elseif not is_held then
        local full = store_image(b, j.tenant, image, j.content, s.max_bytes, j.max_bytes, s.image_ttl_ms, now)
        if full then return full end
    end
    s.images[image] = true
    use_image(b, image)
    if s.has_marks then redis.call('HDEL', p .. 'image_check', image) end
    local latest = now + s.max_age_ms * 1000
    local deadline = j.deadline
    if deadline <= 0 or deadline > latest then deadline = latest end
    s.place = math.max(s.place + 1, now)
    s.live = s.live + 1
    local place = text(s.place - j.priority * HEAD_START_US)
    local created, until_ = s.created, deadline == latest and s.latest or text(deadline)
    j.image, j.until_ = image, until_
    local more = {}
    if j.weight ~= 1 then more = { 'weight', text(j.weight) } end
    if j.batch then
        local n = #more
        more[n + 1], more[n + 2], more[n + 3], more[n + 4] = 'batch', j.batch, 'item', j.item
    end
    redis.call('HSET', p .. 'job:' .. j.id, 'tenant', j.tenant, 'request_id', j.request_id, 'state', 'QUEUED',
        'spec', j.spec, 'model', j.model, 'image', image, 'created', created, 'deadline', until_, 'ttl', j.ttl,
        'attempts', '0', 'fence', '0', 'place', place, unpack(more))
    later_zadd(b, 'live', deadline == latest and s.latest_ms or ms_up(deadline), j.id)
    local g = s.last
    if g[1] ~= j.model or g[2] ~= j.tenant then -- names are put together once for those who have them in common
        g = { j.model, j.tenant, 'line:' .. j.model .. ':' .. j.tenant, 'index:' .. j.tenant }
        s.last, s.lines[g[3]], b.wake[j.model] = g, g, true
    end
    later_zadd(b, g[4], 0, j.id)
    later_zadd(b, g[3], place, j.id)
    later_ready(b, j.model, 1)
    if j.request_id ~= '' then
        redis.call('SET', p .. 'request:' .. j.tenant .. ':' .. j.request_id, j.id .. ' ' .. j.fingerprint)
    end
    later_incr(b, 'tenant_jobs', j.tenant, 1)
    later_incr(b, 'count', 'submitted', 1)
    return nil
end

-- What a call of many jobs has in common.
local function submit_begin(p, a)
    local s = { now = now_us(), max_age_ms = tonumber(a[1]), max_jobs = tonumber(a[2]), max_bytes = tonumber(a[3]),
        image_ttl_ms = tonumber(a[4]), has_marks = redis.call('EXISTS', p .. 'image_check') == 1,
        live = redis.call('ZCARD', p .. 'live'), models = {}, lines = {}, last = {}, images = {},
        place = tonumber(redis.call('HGET', p .. 'count', 'place') or '0') }
    local latest = s.now + s.max_age_ms * 1000
    s.created, s.latest, s.latest_ms = text(s.now), text(latest), ms_up(latest)
    s.image_expire = ms_up(s.now + s.image_ttl_ms * 1000)
    return s
end

local function submit_end(b, s)
    -- Also when nothing is new: a repeat must write, or WAIT would not wait for what it repeats.
    redis.call('HSET', b.p .. 'count', 'place', text(s.place))
    write(b)
    for _, line in pairs(s.lines) do activate(b.p, line[1], line[2]) end
end

local function submit_args(a, i)
    return { tenant = a[i], id = a[i + 1], request_id = a[i + 2], fingerprint = a[i + 3], model = a[i + 4],
        is_default = a[i + 5] == '1', sha256 = a[i + 6], spec = a[i + 7], content = a[i + 8],
        deadline = tonumber(a[i + 9]), ttl = a[i + 10], priority = tonumber(a[i + 11]),
        weight = tonumber(a[i + 12]), max_jobs = tonumber(a[i + 13]), max_bytes = tonumber(a[i + 14]),
        rate = tonumber(a[i + 15]), burst = tonumber(a[i + 16]) }
end

-- max_age_ms max_jobs max_bytes image_ttl_ms {tenant id request_id fingerprint model is_default sha256 spec
-- content deadline_us ttl_ms priority weight tenant_jobs tenant_bytes tenant_rate tenant_burst}...
-- ->  per job {1 if new, job view...} or an error
local SUBMIT_ARGS = 17
local function submit(keys, a)
    local b, s, out = batch(keys[1]), submit_begin(keys[1], a), {}
    for i = 5, #a, SUBMIT_ARGS do
        local j = submit_args(a, i)
        out[#out + 1] = submit_one(b, s, j) or { 1, j.id, j.tenant, j.request_id, 'QUEUED', j.spec, '', '', '', '0', '',
            s.created, '', '', j.until_, '', j.ttl, j.model, j.image, '' }
    end
    submit_end(b, s)
    return out
end
