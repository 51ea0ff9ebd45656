---- a job's record ----
-- Two fields of its hash are packed: `fixed`, what the job is, written once, and `state`, how it stands. A field
-- costs a command about as much as the bytes of ten, and a number in text more than a packed one. What few jobs
-- have, and what is large, are fields of their own. proto/KEYS.md tells the layout.

local STATES = { 'QUEUED', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'EXPIRED' }
local STATE_NUMBER = { QUEUED = 1, RUNNING = 2, SUCCEEDED = 3, FAILED = 4, CANCELLED = 5, EXPIRED = 6 }
local TERMINAL = { SUCCEEDED = true, FAILED = true, CANCELLED = true, EXPIRED = true }

-- The beginning of `fixed` is the same for many jobs of a call, and made once.
local TERMS_OF_JOB, OWN, FIXED = '<dddHc0Hc0', '<ddHc0Hc0Hc0Hc0', '<dddHc0Hc0ddHc0Hc0Hc0Hc0'
local STATE = '<BBHI4I4ddddHc0Hc0'

local function pack_terms(created, ttl, weight, tenant, model)
    return struct.pack(TERMS_OF_JOB, created, ttl, weight, #tenant, tenant, #model, model)
end

local function pack_own(deadline, place, image, request_id, of_batch, item)
    of_batch, item = of_batch or '', item or ''
    return struct.pack(OWN, deadline, place, #image, image, #request_id, request_id, #of_batch, of_batch, #item, item)
end

local function pack_state(j)
    local worker, by = j.worker, j.by
    return struct.pack(STATE, STATE_NUMBER[j.state], j.cancel and 1 or 0, j.group, j.fence, j.attempts, j.started, j.charge,
        j.finished, j.expire, #worker, worker, #by, by)
end

-- Of a job that waits for its first attempt.
local function fresh_state()
    return pack_state({ state = 'QUEUED', group = 0, fence = 0, attempts = 0, started = 0, charge = 0, finished = 0,
        expire = 0, worker = '', by = '' })
end

-- nil: there is no such job, or its record is not whole. batch: nil if it is of none.
local function unpack_job(fixed, packed)
    if not fixed or not packed then return nil end
    local created, ttl, weight, tenant, model, deadline, place, image, request_id, of_batch, item = struct.unpack(FIXED, fixed)
    local state, cancel, group, fence, attempts, started, charge, finished, expire, worker, by = struct.unpack(STATE, packed)
    return { created = created, deadline = deadline, place = place, ttl = ttl, weight = weight, tenant = tenant,
        model = model, image = image, request_id = request_id, batch = of_batch ~= '' and of_batch or nil, item = item,
        state = STATES[state], cancel = cancel == 1, group = group, fence = fence, attempts = attempts,
        started = started, charge = charge, finished = finished, expire = expire, worker = worker, by = by }
end

-- An item is "NUMBER CUSTOM_ID".
local function number_of(item) return string.match(item, '^%d+') end

local function job_of(p, id)
    local v = redis.call('HMGET', p .. 'job:' .. id, 'fixed', 'state')
    return unpack_job(v[1], v[2])
end

-- How it stands; `...`: further fields.
local function save(p, id, j, ...)
    redis.call('HSET', p .. 'job:' .. id, 'state', pack_state(j), ...)
end
