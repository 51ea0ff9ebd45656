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

-- A case that was requeued is none any more, but what it became is kept for as long as it would have been: the call may
-- be made again, its first answer having been lost, and gets that job. nil: it was not, or the job's record has gone.
local function case_became(keys, a)
    local id = redis.call('HGET', keys[1] .. 'case:' .. a[1], 'became')
    local job = id and view(keys[1], id)
    if not job or job[2] == '' then return nil end
    table.insert(job, 1, 0)
    return { job }
end

-- got: what case_requeue answers.
local function case_remember(keys, a, got)
    if got[1] and not got[1].err then
        redis.call('HSET', keys[1] .. 'case:' .. a[1], 'became', a[2])
        redis.call('PEXPIRE', keys[1] .. 'case:' .. a[1], text(CASE_KEPT_US / 1000))
    end
    return got
end

-- id  ->  1, or 0 if there is none
local function case_drop(keys, a)
    return drop_case(keys[1], a[1])
end

-- id new_id max_age_ms max_jobs max_bytes image_ttl_ms  ->  {{1, job view...}} or an error. The job itself has ended, and what
-- has ended stays so: its work is submitted anew, as job new_id.
local function case_requeue(keys, a)
    local p = keys[1]
    local v = redis.call('HMGET', p .. 'case:' .. a[1], 'tenant', 'model', 'image', 'spec', 'ttl')
    if not v[1] then return {} end
    local terms = v[1] .. ' ' .. v[2] .. ' 1 ' .. v[5] .. ' 0 1 0 0 0 1'
    local got = submit(keys, { a[3], a[4], a[5], a[6], terms, a[2], '', '', string.match(v[3], ':(.*)$'), v[4], '', '0' })
    local is_new = type(got[1]) ~= 'table'
    if is_new or not got[1].err then drop_case(p, a[1]) end
    return is_new and { { 1, unpack(view(p, a[2])) } } or got
end
