---- what is done with batches ----

-- tenant batch ttl_ms labels  ->  {1 if new, batch view...}
local function batch_create(keys, a)
    local p, name, now = keys[1], a[1] .. ':' .. a[2], now_us()
    local is_new = redis.call('EXISTS', p .. 'batch:' .. name) == 0
    if is_new then
        local n = redis.call('ZCARD', p .. 'batches:' .. a[1])
        if n >= BATCHES_MAX then
            return fail('BATCH_LIMIT', 'tenant ' .. a[1] .. ' has ' .. n .. ' batches, the limit is ' .. BATCHES_MAX ..
                '; they go when their time to live is over')
        end
        -- The place in the list is the page's token: no two have the same.
        local last = redis.call('ZREVRANGE', p .. 'batches:' .. a[1], 0, 0, 'WITHSCORES')
        local place = math.max(now, tonumber(last[2] or '0') + 1)
        redis.call('HSET', p .. 'batch:' .. name, 'created', text(now), 'ttl', a[3], 'labels', a[4], 'next', '1')
        redis.call('ZADD', p .. 'batches:' .. a[1], text(place), a[2])
        redis.call('ZADD', p .. 'batch_ends', ms_up(now + tonumber(a[3]) * 1000), name)
    end
    local v = batch_view(p, a[1], a[2], now)
    table.insert(v, 1, is_new and 1 or 0)
    return v
end

-- tenant batch  ->  batch view
local function batch_get(keys, a) return batch_view(keys[1], a[1], a[2], now_us()) end

-- tenant token limit  ->  {next token or '', views...}, newest first
local function batch_list(keys, a)
    local p, now, limit = keys[1], now_us(), tonumber(a[3])
    local found = redis.call('ZREVRANGEBYSCORE', p .. 'batches:' .. a[1], a[2] == '' and '+inf' or '(' .. a[2], '-inf',
        'WITHSCORES', 'LIMIT', 0, limit)
    local out = { #found == 2 * limit and text(tonumber(found[#found])) or '' }
    for i = 1, #found, 2 do
        local v = batch_view(p, a[1], found[i], now)
        if v[1] then out[#out + 1] = v end
    end
    return out
end

-- tenant batch  ->  batch view. What has not ended is cancelled by the sweeps that follow.
local function batch_cancel(keys, a)
    local p, name, now = keys[1], a[1] .. ':' .. a[2], now_us()
    if redis.call('EXISTS', p .. 'batch:' .. name) == 0 then return {} end
    redis.call('HSET', p .. 'batch:' .. name, 'sealed', '1', 'cancel', '1')
    if redis.call('EXISTS', p .. 'batch_live:' .. name) == 1 then
        redis.call('ZADD', p .. 'batch_cancels', 'NX', ms(now), name)
    end
    return batch_view(p, a[1], a[2], now)
end

-- tenant batch from limit with_jobs  ->  {batch view, {entry, job view or nothing}...}: the ends from number `from` on
-- (0: the first). An empty list if there is no such batch.
local function batch_done(keys, a)
    local p, v = keys[1], batch_view(keys[1], a[1], a[2], now_us())
    if not v[1] then return {} end
    local out, from = { v }, tonumber(a[3])
    local list = redis.call('LRANGE', p .. 'batch_done:' .. a[1] .. ':' .. a[2], text(from),
        text(from + tonumber(a[4]) - 1))
    for _, entry in ipairs(list) do
        local id = a[5] == '1' and string.match(entry, '^%u+ %d+ (%x+) ')
        local job = id and view(p, id) or {}
        out[#out + 1] = { entry, job[2] == a[1] and job or {} }
    end
    return out
end

-- What no later attempt would change is the item's end.
local FINAL = { MODEL_UNKNOWN = true, IMAGE_NOT_HELD = true }
local function submit_item(b, s, k, a, i, refusal)
    local why, item = refusal, a[i + SUBMIT_ARGS + 1] .. ' ' .. a[i + SUBMIT_ARGS + 2]
    if why == '' then
        local full = submit_one(b, s, a, i, a[i + SUBMIT_ARGS], item)
        local reason = full and string.match(full.err, '^PSEG ([%u_]+) ')
        local own_max, size = full and s.terms[a[i]].max_bytes or 0, #a[i + 6]
        local is_final = FINAL[reason] or size > s.max_bytes or own_max > 0 and size > own_max
        if full and not is_final then return full end
        why = full and string.sub(full.err, 6) or ''
    end
    if why ~= '' then
        local reason, message = string.match(why, '^([%u_]+) (.*)$')
        later_end(b, k.name, 'FAILED', 'REFUSED ' .. s.now_ms .. ' ' .. reason .. ' ' .. #a[i + SUBMIT_ARGS + 2] .. ' ' ..
            item .. ' ' .. message)
        later_incr(b, 'batch:' .. k.name, 'refused', 1)
    else
        k.live[#k.live + 1] = text(k.next)
        k.live[#k.live + 1] = a[i + 1]
    end
    k.next = k.next + 1
    return nil
end

-- As submit, and per job further: batch seq custom_id refusal. refusal: "REASON message" of an item that is no job, or
-- empty; or "SEAL": this is no item, and none comes any more (a promise like the items', which must not be lost where
-- they are not).  ->  per item the number that its batch's next item must have, or an error
local ITEM_ARGS = SUBMIT_ARGS + 4
local function submit_items(keys, a)
    local p, b, s, out, batches = keys[1], batch(keys[1]), submit_begin(keys[1], a), {}, {}
    s.now_ms = ms(s.now)
    look_ahead(b, s, a, ITEM_ARGS)
    for i = 5, #a, ITEM_ARGS do
        local of_batch, seq, refusal, why = a[i + SUBMIT_ARGS], tonumber(a[i + SUBMIT_ARGS + 1]), a[i + SUBMIT_ARGS + 3], nil
        local name = terms_of(b, s, a[i]).tenant .. ':' .. of_batch
        local k = batches[name]
        if not k then
            local v = redis.call('HMGET', p .. 'batch:' .. name, 'next', 'sealed')
            k = { name = name, next = tonumber(v[1] or '0'), sealed = v[2] == '1', live = {} }
            k.first = k.next
            batches[name] = k
        end
        if k.next == 0 then
            why = fail('BATCH_NOT_FOUND', 'no batch ' .. of_batch ..
                ': it never was, it is another tenant\'s, or its time to live is over')
        elseif refusal == 'SEAL' then
            k.sealed = true
            redis.call('HSET', p .. 'batch:' .. name, 'sealed', '1')
        elseif seq >= k.next and k.sealed then
            why = fail('BATCH_SEALED', 'batch ' .. of_batch .. ' takes no more items, and item ' .. text(seq) .. ' is new')
        elseif seq > k.next then
            why = fail('BATCH_OUT_OF_ORDER', 'item ' .. text(seq) .. ' came where item ' .. text(k.next) .. ' was due')
        elseif seq == k.next then
            why = submit_item(b, s, k, a, i, refusal)
        end
        out[#out + 1] = why or k.next
    end
    for name, k in pairs(batches) do
        -- First the jobs: a torn log that has the next number has them, too (see is_promised).
        if #k.live > 0 then redis.call('HSET', p .. 'batch_live:' .. name, unpack(k.live)) end
        if k.next > k.first then redis.call('HSET', p .. 'batch:' .. name, 'next', text(k.next)) end
    end
    submit_end(b, s)
    return out
end
