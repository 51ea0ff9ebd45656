---- what a function writes when it ends ----

local function batch(p)
    return { p = p, add = {}, rem = {}, incr = {}, entries = {}, ready = {}, wake = {}, memo = {}, bytes = 0, uses = {},
        ends = {}, sets = {}, unused = {}, packs = {}, open = {} }
end

-- One more job of a model, or one fewer, waits or runs.
local function later_ready(b, model, by)
    b.ready[model] = (b.ready[model] or 0) + by
end

-- What ZADD will write into a key: score, member, ...
local function gathered(b, key)
    local l = b.add[key]
    if not l then
        l = {}
        b.add[key] = l
    end
    return l
end

local function later_zadd(b, key, score, member)
    local l = gathered(b, key)
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

-- An item of the batch `name` (TENANT:BATCH) has ended; number: its own, nil if it was refused and never a job.
local function later_end(b, name, field, entry, number)
    local e = b.ends[name]
    if not e then
        e = { entries = {}, numbers = {}, counts = {} }
        b.ends[name] = e
    end
    e.entries[#e.entries + 1] = entry
    e.numbers[#e.numbers + 1] = number
    e.counts[field] = (e.counts[field] or 0) + 1
end

-- The same of many that were jobs and of which batch_live has nothing by number.
local function later_ends(b, name, field, entries)
    later_end(b, name, field, entries[1])
    local e = b.ends[name]
    for i = 2, #entries do e.entries[#e.entries + 1] = entries[i] end
    e.counts[field] = e.counts[field] + #entries - 1
end

-- Nothing for a batch whose record is gone: nothing would end it.
local function write_ends(p, name, e)
    if redis.call('HEXISTS', p .. 'batch:' .. name, 'created') == 0 then return end
    redis.call('RPUSH', p .. 'batch_done:' .. name, unpack(e.entries))
    for field, n in pairs(e.counts) do redis.call('HINCRBY', p .. 'batch:' .. name, field, n) end
    if #e.numbers > 0 then redis.call('HDEL', p .. 'batch_live:' .. name, unpack(e.numbers)) end
end

-- What many have in common is told once: tenant and batch hold for all that follow in the entry. `state` ends what is
-- told of a job. An entry that grows long is followed by another: a call takes only so many arguments.
local function event(b, id, state, tenant, of_batch, worker)
    local e = b.entries[#b.entries]
    if not e or #e > ENTRY_FIELDS then
        e = {}
        b.entries[#b.entries + 1] = e
        b.told_tenant, b.told_batch = nil, ''
    end
    if tenant ~= b.told_tenant then
        e[#e + 1] = 'tenant'
        e[#e + 1] = tenant or ''
        b.told_tenant = tenant
    end
    if (of_batch or '') ~= b.told_batch then
        e[#e + 1] = 'batch'
        e[#e + 1] = of_batch or ''
        b.told_batch = of_batch or ''
    end
    e[#e + 1] = 'id'
    e[#e + 1] = id
    if worker then
        e[#e + 1] = 'worker'
        e[#e + 1] = worker
    end
    e[#e + 1] = 'state'
    e[#e + 1] = state
end

-- One live job fewer uses an image.
local function leave_image(b, image)
    b.unused[image] = (b.unused[image] or 0) + 1
end

-- SET key value; key: with the prefix.
local function later_set(b, key, value)
    local l = b.sets
    l[#l + 1] = key
    l[#l + 1] = value
end

-- One more live job uses an image. Of one that this call stores nobody counts the users yet.
local function use_image(b, image)
    if b.uses[image] then
        b.uses[image] = b.uses[image] + 1
    else
        later_incr(b, 'image_use', image, 1)
    end
end

-- Live jobs that used images have ended. The field of an image that nobody uses any more goes.
local function write_unused(p, unused)
    local images = {}
    for image in pairs(unused) do images[#images + 1] = image end
    if #images == 0 then return end
    local uses, left, gone = redis.call('HMGET', p .. 'image_use', unpack(images)), {}, {}
    for i, image in ipairs(images) do
        local n = tonumber(uses[i] or '0') - unused[image]
        if n > 0 then
            left[#left + 1] = image
            left[#left + 1] = n
        else
            gone[#gone + 1] = image
        end
    end
    if #left > 0 then redis.call('HSET', p .. 'image_use', unpack(left)) end
    if #gone > 0 then redis.call('HDEL', p .. 'image_use', unpack(gone)) end
end

-- Writes it all; what comes after is gathered anew.
local function write(b)
    local p = b.p
    packs.write(b)
    if #b.sets > 0 then redis.call('MSET', unpack(b.sets)) end
    if b.bytes > 0 then redis.call('INCRBY', p .. 'bytes', text(b.bytes)) end
    local uses = {}
    for image, n in pairs(b.uses) do
        if n > 0 then
            uses[#uses + 1] = image
            uses[#uses + 1] = n
        end
    end
    if #uses > 0 then redis.call('HSET', p .. 'image_use', unpack(uses)) end
    write_unused(p, b.unused)
    for key, l in pairs(b.add) do if #l > 0 then redis.call('ZADD', p .. key, unpack(l)) end end
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
    for name, e in pairs(b.ends) do write_ends(p, name, e) end
    for _, e in ipairs(b.entries) do
        redis.call('XADD', p .. 'events', 'MAXLEN', '~', EVENTS_MAX, '*', unpack(e))
    end
    for _, k in ipairs(b.open) do
        redis.call('HDEL', k.key, 'open')
        k.is_open = false
    end
    b.open = {}
    b.add, b.rem, b.incr, b.entries, b.ready, b.wake, b.bytes, b.uses, b.ends, b.sets, b.unused = {}, {}, {}, {}, {}, {}, 0, {}, {}, {}, {}
    b.held = nil
end
