---- reading and cancelling ----

-- tenant id...  ->  one view per job that is the tenant's; an empty list for any other
local function get(keys, a)
    local out, seen = {}, {}
    for i = 2, #a do
        local v = view(keys[1], a[i], seen)
        out[#out + 1] = v[2] == a[1] and v or {}
    end
    return out
end

-- tenant after_id limit  ->  {next id or '', views...}. Newest first: ids sort by time.
local function list(keys, a)
    local p, index = keys[1], keys[1] .. 'index:' .. a[1]
    local limit, after, ids = tonumber(a[3]), a[2], {}
    -- The items of a pack are one member, which sorts before the ids of all but the first.
    for _, m in ipairs(redis.call('ZREVRANGEBYLEX', index, after == '' and '+' or '(' .. after, '-', 'LIMIT', 0, limit)) do
        local from = #ids
        packs.each(m, function(id) if after == '' or id < after then table.insert(ids, from + 1, id) end end)
    end
    for i = #ids, limit + 1, -1 do ids[i] = nil end
    local out, seen = { #ids == limit and ids[#ids] or '' }, {}
    for _, id in ipairs(ids) do
        local v = view(p, id, seen)
        if v[2] == a[1] then out[#out + 1] = v end
    end
    return out
end

-- tenant id prompt_index...  ->  {view, mask or nil...}
local function masks(keys, a)
    local p, v = keys[1], view(keys[1], a[2])
    if v[2] ~= a[1] then return { {} } end
    local out, key, name = { v }, packs.masks_at(p, a[2])
    for i = 3, #a do out[#out + 1] = redis.call('HGET', key, name .. a[i]) end
    return out
end

-- tenant id  ->  view
local function cancel(keys, a)
    local p, b, j = keys[1], batch(keys[1]), look_job(keys[1], a[2], {})
    if not j or j.tenant ~= a[1] then return {} end
    j = own_job(b, a[2])
    if j.state == 'QUEUED' then
        finish_job(b, a[2], 'CANCELLED', now_us(), j)
    elseif j.state == 'RUNNING' then
        j.cancel = true
        save(p, a[2], j)
    end
    write(b)
    return view(p, a[2])
end
