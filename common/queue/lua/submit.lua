---- submit ----

local taking = {} -- functions of a submit; see packs

local SUBMIT_ARGS = 8

-- At most `rate` jobs a second and `burst` at once, by the generic cell rate algorithm (ATM Forum TM 4.0):
-- one number, the time at which a steady stream would be due next. nil if good, else an error reply.
function taking.check_rate(p, tenant, rate, burst, now)
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
local function repeated(b, t, id, request_id, fingerprint)
    local p = b.p
    if redis.call('EXISTS', p .. 'job:' .. id) == 1 then
        -- The same call made twice, its first answer having been lost.
        local j = job_of(p, id)
        if not j or j.tenant ~= t.tenant then return fail('INTERNAL', 'job id ' .. id .. ' is taken') end
        mend(b, id)
        return { 0, unpack(view(p, id)) }
    end
    local old = request_id ~= '' and redis.call('GET', t.requests .. request_id)
    if not old then return nil end
    local first = string.sub(old, 1, 32)
    if redis.call('EXISTS', p .. 'job:' .. first) == 0 then return nil end
    if string.sub(old, 34) ~= fingerprint then
        return fail('REQUEST_ID_REUSED', 'request_id "' .. request_id ..
            '" was used for a job with other content; take a new one')
    end
    mend(b, first)
    return { 0, unpack(view(p, first)) }
end

local function check_model(p, j)
    if j.is_default or tonumber(redis.call('ZSCORE', p .. 'models', j.model) or '0') ~= 0 then return nil end
    local known = redis.call('ZREVRANGEBYSCORE', p .. 'models', '+inf', '(0', 'LIMIT', 0, 10)
    return fail('MODEL_UNKNOWN', 'model "' .. j.model .. '" is served by no worker; known: ' ..
        (#known > 0 and table.concat(known, ', ') or 'none'))
end

-- What many jobs of a call have in common comes as one text, and is taken apart once:
-- tenant model is_default ttl_ms priority weight tenant_jobs tenant_bytes tenant_rate tenant_burst
local TERMS = '^(%S*) (%S*) (%d) (%-?%d+) (%-?%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$'
local function terms_of(b, s, text_of_them)
    local t = s.terms[text_of_them]
    if t then return t end
    local tenant, model, default, ttl, priority, weight, jobs, bytes, rate, burst = string.match(text_of_them, TERMS)
    local line = 'line:' .. model .. ':' .. tenant
    t = { tenant = tenant, model = model, is_default = default == '1', max_jobs = tonumber(jobs),
        max_bytes = tonumber(bytes), rate = tonumber(rate), burst = tonumber(burst),
        ahead_us = tonumber(priority) * HEAD_START_US, images = tenant .. ':',
        requests = b.p .. 'request:' .. tenant .. ':', line = gathered(b, line), index = gathered(b, 'index:' .. tenant),
        fixed = pack_terms(s.now, tonumber(ttl), tonumber(weight), tenant, model), n = 0 }
    s.terms[text_of_them] = t
    return t
end

-- Writes what the jobs so far have added.
local function settle(b, s)
    local n = 0
    for _, t in pairs(s.terms) do
        if t.n > 0 then
            n = n + t.n
            later_ready(b, t.model, t.n)
            later_incr(b, 'tenant_jobs', t.tenant, t.n)
            b.wake[t.model] = true
        end
    end
    if n > 0 then later_incr(b, 'count', 'submitted', n) end
    write(b)
    for _, t in pairs(s.terms) do if t.n > 0 then activate(b.p, t.model, t.tenant) end end
    s.terms = {}
end

-- How many jobs of the tenant this call has added.
local function added(s, tenant)
    local n = 0
    for _, t in pairs(s.terms) do if t.tenant == tenant then n = n + t.n end end
    return n
end

-- All images of a call are looked for at once (look_ahead); but a purge may have taken one since.
function taking.is_image_held(b, s, image)
    if s.images[image] then return true end
    if s.n_held == 0 then return false end
    if s.n_held == s.n_images and not b.has_purged then return true end
    return redis.call('EXISTS', b.p .. 'image:' .. image) == 1
end

-- May one more be taken? nil, or an error reply.
function taking.check_room(b, s, t)
    if not s.models[t.model] then
        local unknown = check_model(b.p, t)
        if unknown then return unknown end
        s.models[t.model] = true
        redis.call('ZADD', b.p .. 'models', 'NX', 0, t.model)
    end
    if s.live >= s.max_jobs then
        return fail('QUEUE_FULL', text(s.live) .. ' jobs are alive, the limit is ' .. text(s.max_jobs) ..
            '; try again later')
    end
    if t.max_jobs > 0 then
        local own = tonumber(redis.call('HGET', b.p .. 'tenant_jobs', t.tenant) or '0') + added(s, t.tenant)
        if own >= t.max_jobs then
            return fail('TENANT_LIMIT', text(own) .. ' jobs of tenant ' .. t.tenant .. ' are alive, its limit is ' ..
                text(t.max_jobs) .. '; try again later')
        end
    end
    return nil
end

-- The image is there, or stored with this; nil if good, else an error reply.
function taking.take_image(b, s, t, image, content, is_held)
    if not is_held then
        local full = store_image(b, t.tenant, image, content, s.max_bytes, t.max_bytes, s.image_ttl_ms, s.now)
        if full then return full end
    elseif not s.images[image] then
        redis.call('ZADD', b.p .. 'images', 'GT', s.image_expire, image)
    end
    s.images[image] = true
    use_image(b, image)
    if s.has_marks then redis.call('HDEL', b.p .. 'image_check', image) end
    return nil
end

-- May a job be taken, and its image? nil and its place, or an error reply.
function taking.admit(b, s, t, image, sha, content)
    local is_held = taking.is_image_held(b, s, image)
    local refused = taking.check_room(b, s, t)
    if refused then return refused end
    if not is_held and content == '' then
        return fail('IMAGE_NOT_HELD', 'image ' .. sha .. ' is not held; upload it and repeat')
    end
    if t.rate > 0 then refused = taking.check_rate(b.p, t.tenant, t.rate, t.burst, s.now) end
    refused = refused or taking.take_image(b, s, t, image, content, is_held)
    if refused then return refused end
    s.place = math.max(s.place + 1, s.now)
    s.live = s.live + 1
    t.n = t.n + 1
    return nil, s.place - t.ahead_us
end

-- Stores a job with a record of its own. live_until: its deadline, as a score. `...`: further fields.
function taking.store(b, s, t, id, place, image, request_id, spec, deadline, live_until, of_batch, item, ...)
    redis.call('HSET', b.p .. 'job:' .. id, 'fixed', t.fixed .. pack_own(deadline, place, image, request_id, of_batch, item),
        'state', s.fresh, 'spec', spec, ...)
    later_zadd(b, 'live', live_until, id)
    local line, index = t.line, t.index
    line[#line + 1] = place
    line[#line + 1] = id
    index[#index + 1] = 0
    index[#index + 1] = id
end

-- A deadline within the bound, and as a score.
function taking.deadline(s, asked)
    if asked <= 0 or asked >= s.latest then return s.latest, s.latest_ms end
    return asked, ms_up(asked)
end

-- The job at a[i] (see submit). nil and the answer if it is new and stored; else what is there already, or an error
-- reply. s: of this call: now, place (the last one given), live, and the bounds.
local function submit_one(b, s, a, i)
    if s.repeats then settle(b, s) end
    local t, id, request_id = terms_of(b, s, a[i]), a[i + 1], a[i + 2]
    local known = s.repeats and repeated(b, t, id, request_id, a[i + 3])
    if known then return known end
    local image = t.images .. a[i + 4]
    local refused, place = taking.admit(b, s, t, image, a[i + 4], a[i + 6])
    if refused then return refused end
    local deadline, live_until = taking.deadline(s, tonumber(a[i + 7]))
    taking.store(b, s, t, id, place, image, request_id, a[i + 5], deadline, live_until)
    if request_id ~= '' then later_set(b, t.requests .. request_id, id .. ' ' .. a[i + 3]) end
    return nil, deadline == s.latest and s.answer or s.created .. ' ' .. text(deadline)
end

-- What a call of many jobs has in common.
local function submit_begin(p, a)
    local s = { now = now_us(), max_age_ms = tonumber(a[1]), max_jobs = tonumber(a[2]), max_bytes = tonumber(a[3]),
        image_ttl_ms = tonumber(a[4]), has_marks = redis.call('EXISTS', p .. 'image_check') == 1,
        live = packs.live_jobs(p), models = {}, terms = {}, images = {}, fresh = fresh_state(),
        place = tonumber(redis.call('HGET', p .. 'count', 'place') or '0') }
    s.latest = s.now + s.max_age_ms * 1000
    s.created, s.latest_ms = text(s.now), ms_up(s.latest)
    s.answer = s.created .. ' ' .. text(s.latest)
    s.image_expire = ms_up(s.now + s.image_ttl_ms * 1000)
    return s
end

-- Looks at once for all images that the jobs of a call may find.
function taking.look_for_images(s, images)
    s.n_images, s.n_held = #images, #images > 0 and redis.call('EXISTS', unpack(images)) or 0
end

-- Looks at once for all that the jobs of a call may find: their images, and whether any of them is there already or
-- comes twice in the call, in which case each is looked for on its own.
local function look_ahead(b, s, a)
    local p, images, seen, jobs, requests = b.p, {}, {}, {}, {}
    for i = 5, #a, SUBMIT_ARGS do
        local t, id, request_id, sha = terms_of(b, s, a[i]), a[i + 1], a[i + 2], a[i + 4]
        local image, request = 'image:' .. t.images .. sha, t.requests .. request_id
        if sha ~= '' and not seen[image] then
            seen[image] = true
            images[#images + 1] = p .. image
        end
        if seen[id] or request_id ~= '' and seen[request] then s.repeats = true end
        seen[id], seen[request] = true, true
        jobs[#jobs + 1] = p .. 'job:' .. id
        if request_id ~= '' then requests[#requests + 1] = request end
    end
    taking.look_for_images(s, images)
    s.repeats = s.repeats or #jobs > 0 and redis.call('EXISTS', unpack(jobs)) > 0 or
        #requests > 0 and redis.call('EXISTS', unpack(requests)) > 0
end

local function submit_end(b, s)
    -- Also when nothing is new: a repeat must write, or WAIT would not wait for what it repeats.
    redis.call('HSET', b.p .. 'count', 'place', text(s.place))
    settle(b, s)
end

-- max_age_ms max_jobs max_bytes image_ttl_ms {terms id request_id fingerprint sha256 spec content deadline_us}...
-- ->  per job "CREATED DEADLINE" if it is new, {0, job view...} if it was there, or an error
local function submit(keys, a)
    local b, s, out = batch(keys[1]), submit_begin(keys[1], a), {}
    look_ahead(b, s, a)
    for i = 5, #a, SUBMIT_ARGS do
        local known, answer = submit_one(b, s, a, i)
        out[#out + 1] = known or answer
    end
    submit_end(b, s)
    return out
end
