---- reading and cancelling ----

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
    local p, j = keys[1], job_of(keys[1], a[2])
    if not j or j.tenant ~= a[1] then return {} end
    if j.state == 'QUEUED' then
        local b = batch(p)
        finish_job(b, a[2], 'CANCELLED', now_us(), j)
        write(b)
    elseif j.state == 'RUNNING' then
        j.cancel = true
        save(p, a[2], j)
    end
    return view(p, a[2])
end
