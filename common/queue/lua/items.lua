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

-- tenant batch from limit with_jobs [masks_from mask_bytes]  ->  {batch view, {entry, job view or nothing, masks}...}:
-- the ends from number `from` on (0: the first). An empty list if there is no such batch. masks: of a job that
-- SUCCEEDED, from number masks_from on and until they are more than mask_bytes; else nil.
local function batch_done(keys, a)
    local p, v = keys[1], batch_view(keys[1], a[1], a[2], now_us())
    if not v[1] then return {} end
    local out, from = { v }, tonumber(a[3])
    local list = redis.call('LRANGE', p .. 'batch_done:' .. a[1] .. ':' .. a[2], text(from),
        text(from + tonumber(a[4]) - 1))
    local seen, masks_from, room = {}, tonumber(a[6] or 'inf'), tonumber(a[7] or '0')
    for i, entry in ipairs(list) do
        local id = a[5] == '1' and string.match(entry, '^%u+ %d+ (%x+) ')
        local job, masks, bytes = id and view(p, id, seen) or {}, false, 0
        if job[2] ~= a[1] then job = {} end
        if room >= 0 and from + i > masks_from and job[4] == 'SUCCEEDED' then
            masks, bytes = packs.all_masks(p, id)
            room = room - bytes
        end
        out[#out + 1] = { entry, job, masks }
    end
    return out
end

-- What many items of a call have in common comes as one text: the terms of a submit, the batch and the deadline.
local ITEM_ARGS = 7
function taking.item_head(b, s, said)
    local h = s.heads[said]
    if h then return h end
    local terms, of_batch, deadline = string.match(said, '^(.*) (%S+) (%-?%d+)$')
    local t = terms_of(b, s, terms)
    local name = t.tenant .. ':' .. of_batch
    h = { t = t, name = name, batch = of_batch, k = s.batches[name] }
    h.deadline, h.live_until = taking.deadline(s, tonumber(deadline))
    if not h.k then
        local v = redis.call('HMGET', b.p .. 'batch:' .. name, 'next', 'sealed')
        h.k = { name = name, next = tonumber(v[1] or '0'), sealed = v[2] == '1', live = {} }
        h.k.first = h.k.next
        s.batches[name] = h.k
    end
    s.heads[said] = h
    return h
end

-- nil if item a[i] is stored, else an error reply.
function taking.take_item(b, s, h, a, i)
    local t, k, sha, kept = h.t, h.k, a[i + 2], a[i + 3]
    local place
    if sha == s.sha and h == s.sha_of and t.rate == 0 and t.max_jobs == 0 and s.live < s.max_jobs then
        -- As the last one, of which all was looked at.
        use_image(b, s.image)
        s.live, s.place, t.n = s.live + 1, s.place + 1, t.n + 1
        place = s.place - t.ahead_us
    else
        local refused
        s.sha = nil
        s.image = t.images .. sha
        refused, place = taking.admit(b, s, t, s.image, sha, a[i + 4])
        if refused then return refused end
        s.sha, s.sha_of = sha, h
    end
    if not k.nonce then
        k.nonce = string.sub(a[i + 1], 17) -- random
        k.call = text(k.first) .. ' ' .. k.nonce
    end
    -- Into a pack with what comes next, if that has all this in common.
    local is_like_next = a[i + ITEM_ARGS] == a[i] and a[i + ITEM_ARGS + 6] == ''
    if s.pack and s.pack.h ~= h then packs.close(b, s) end
    if s.pack or is_like_next then
        if not s.pack then packs.begin(s, h, a[i + 1], k.next, place) end
        packs.add(s, kept)
        if s.pack.n == packs.MAX or not is_like_next then packs.close(b, s) end
    else
        local _, item, at = struct.unpack(packs.ITEM, kept)
        taking.store(b, s, t, a[i + 1], place, s.image, '', string.sub(kept, at, -2), h.deadline, h.live_until, h.batch, item,
            'call', k.call)
        k.live[#k.live + 1] = text(k.next)
        k.live[#k.live + 1] = a[i + 1]
    end
    return nil
end

-- What no later attempt would change is the item's end.
local FINAL = { MODEL_UNKNOWN = true, IMAGE_NOT_HELD = true }
local function submit_item(b, s, h, a, i, refusal)
    local why = refusal
    if why == '' then
        local full = taking.take_item(b, s, h, a, i)
        if full then
            local own_max, size = h.t.max_bytes, #a[i + 4]
            local is_final = FINAL[string.match(full.err, '^PSEG ([%u_]+) ')] or size > s.max_bytes or
                own_max > 0 and size > own_max
            if not is_final then return full end
            why = string.sub(full.err, 6)
        end
    end
    if why ~= '' then
        local reason, message = string.match(why, '^([%u_]+) (.*)$')
        local _, item = struct.unpack(packs.ITEM, a[i + 3])
        local n = #item - #number_of(item) - 1
        later_end(b, h.name, 'FAILED', 'REFUSED ' .. s.now_ms .. ' ' .. reason .. ' ' .. n .. ' ' .. item .. ' ' .. message)
        later_incr(b, 'batch:' .. h.name, 'refused', 1)
    end
    h.k.next = h.k.next + 1
    return nil
end

-- max_age_ms max_jobs max_bytes image_ttl_ms {head id sha256 kept content seq refusal}...  ->  per item the number that
-- its batch's next item must have, or an error. kept: image (TENANT:SHA256) and item ("NUMBER CUSTOM_ID") as packs.ITEM,
-- the spec, a byte that nobody reads (see kept_of in queue_redis_bulk.c). refusal: "REASON message" of an item that is
-- no job, or empty; or "SEAL": this is no item, and none comes any more (a promise like the items', which must not be
-- lost where they are not). Of items that follow one another all but the first get an id of this call's own, see pack.lua.
local function submit_items(keys, a)
    local p, b, s, out = keys[1], batch(keys[1]), submit_begin(keys[1], a), {}
    s.now_ms, s.heads, s.batches = ms(s.now), {}, {}
    local images, seen, last_head, last_sha = {}, {}, nil, nil
    for i = 5, #a, ITEM_ARGS do
        local head, sha = a[i], a[i + 2]
        if sha ~= '' and (sha ~= last_sha or head ~= last_head) then
            local image = p .. 'image:' .. taking.item_head(b, s, head).t.images .. sha
            if not seen[image] then images[#images + 1] = image end
            seen[image], last_head, last_sha = true, head, sha
        end
    end
    taking.look_for_images(s, images)
    for i = 5, #a, ITEM_ARGS do
        local h, seq, refusal, why = taking.item_head(b, s, a[i]), tonumber(a[i + 5]), a[i + 6], nil
        local k = h.k
        if k.next == 0 then
            why = fail('BATCH_NOT_FOUND', 'no batch ' .. h.batch ..
                ': it never was, it is another tenant\'s, or its time to live is over')
        elseif refusal == 'SEAL' then
            k.sealed = true
            redis.call('HSET', p .. 'batch:' .. h.name, 'sealed', '1')
        elseif seq >= k.next and k.sealed then
            why = fail('BATCH_SEALED', 'batch ' .. h.batch .. ' takes no more items, and item ' .. text(seq) .. ' is new')
        elseif seq > k.next then
            why = fail('BATCH_OUT_OF_ORDER', 'item ' .. text(seq) .. ' came where item ' .. text(k.next) .. ' was due')
        elseif seq == k.next then
            why = submit_item(b, s, h, a, i, refusal)
        end
        out[#out + 1] = why or k.next
    end
    packs.close(b, s)
    for name, k in pairs(s.batches) do
        -- First the jobs: a torn log that has the next number has them, too (see is_promised).
        if #k.live > 0 then redis.call('HSET', p .. 'batch_live:' .. name, unpack(k.live)) end
        if k.next > k.first then
            redis.call('HSET', p .. 'batch:' .. name, 'next', text(k.next), 'c' .. text(k.first), k.nonce or '-')
        end
    end
    submit_end(b, s)
    return out
end
