---- counts; the names of all functions ----
function packs.leased(p)
    local n = 0
    for _, id in ipairs(redis.call('ZRANGE', p .. 'leases', 0, -1)) do n = n + (packs.is_token(id) and packs.running_in(p, id) or 1) end
    return n
end

-- ->  {live jobs, leased jobs, delayed jobs, image bytes held, submitted, succeeded, failed, cancelled, expired,
-- jobs in quarantine}
local function stats(keys)
    local p = keys[1]
    local c = redis.call('HMGET', p .. 'count', 'submitted', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'EXPIRED')
    local out = { packs.live_jobs(p), packs.leased(p),
        redis.call('ZCARD', p .. 'delayed'), tonumber(redis.call('GET', p .. 'bytes') or '0') }
    for i = 1, 5 do out[#out + 1] = tonumber(c[i] or '0') end
    out[#out + 1] = redis.call('ZCARD', p .. 'quarantine')
    return out
end

-- ->  per tenant that has live jobs or images {name, live jobs, image bytes held, batches}, by name
local function uses(keys)
    local p, of, names, out = keys[1], {}, {}, {}
    for i, key in ipairs { 'tenant_jobs', 'tenant_bytes' } do
        local all = redis.call('HGETALL', p .. key)
        for k = 1, #all, 2 do
            local name = all[k]
            if not of[name] then
                of[name] = { name, 0, 0 }
                names[#names + 1] = name
            end
            of[name][1 + i] = tonumber(all[k + 1])
        end
    end
    table.sort(names)
    for _, name in ipairs(names) do
        local u = of[name]
        u[4] = redis.call('ZCARD', p .. 'batches:' .. name)
        out[#out + 1] = u
    end
    return out
end

-- n  ->  in how many parts the queue is laid out: n, if it was not known. A queue that was filled before this was
-- asked lies in one.
local function layout(keys, a)
    local p = keys[1]
    local known = redis.call('GET', p .. 'layout') or (is_used(p) and '1' or a[1])
    redis.call('SET', p .. 'layout', known, 'PX', LAYOUT_KEPT_MS.used)
    return tonumber(known)
end

-- ->  the revision of this library.
local function revision() return REVISION end

local reads = { 'no-writes' }
-- What ends or moves a job must work when memory is full, for it is what frees memory.
local always = { 'allow-oom' }
redis.register_function { function_name = 'pseg1_revision', callback = revision, flags = reads }
redis.register_function { function_name = 'pseg1_layout', callback = layout, flags = always }
redis.register_function('pseg1_submit', submit)
redis.register_function('pseg1_put_image', put_image)
redis.register_function { function_name = 'pseg1_has_images', callback = has_images, flags = always }
redis.register_function { function_name = 'pseg1_get', callback = get, flags = reads }
redis.register_function { function_name = 'pseg1_list', callback = list, flags = reads }
redis.register_function { function_name = 'pseg1_estimate', callback = estimate, flags = reads }
redis.register_function { function_name = 'pseg1_events', callback = events, flags = reads }
redis.register_function { function_name = 'pseg1_states', callback = states, flags = reads }
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
redis.register_function { function_name = 'pseg1_uses', callback = uses, flags = reads }
redis.register_function { function_name = 'pseg1_backlog', callback = backlog, flags = reads }
redis.register_function { function_name = 'pseg1_cases', callback = cases, flags = reads }
redis.register_function { function_name = 'pseg1_case', callback = case, flags = reads }
redis.register_function { function_name = 'pseg1_case_drop', callback = case_drop, flags = always }
redis.register_function('pseg1_case_requeue', function(keys, a)
    return case_became(keys, a) or case_remember(keys, a, case_requeue(keys, a))
end)
redis.register_function('pseg1_submit_items', submit_items)
redis.register_function('pseg1_batch_create', batch_create)
redis.register_function { function_name = 'pseg1_batch_get', callback = batch_get, flags = reads }
redis.register_function { function_name = 'pseg1_batch_list', callback = batch_list, flags = reads }
redis.register_function { function_name = 'pseg1_batch_done', callback = batch_done, flags = reads }
redis.register_function { function_name = 'pseg1_batch_cancel', callback = batch_cancel, flags = always }
redis.register_function { function_name = 'pseg1_get_features', callback = get_features, flags = always }
redis.register_function('pseg1_put_features', put_features)
