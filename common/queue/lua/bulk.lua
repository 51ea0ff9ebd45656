---- batches: a numbered list of jobs of one tenant, and the list of its ends ----
-- NAME is TENANT:BATCH. An entry of `batch_done:NAME` is one item's end, in the order of the ends:
--     STATE MS JOB SEQ CUSTOM_ID                       MS: when, milliseconds
--     REFUSED MS REASON N SEQ CUSTOM_ID MESSAGE        N: bytes of CUSTOM_ID; the item never was a job
-- Its place in the list is the resume token of whoever reads it. How many items are still under way is
-- `next` - 1 - the length of the list: nothing else counts them.

local BATCHES_MAX = 1000       -- of one tenant
local BATCH_RATE_OVER = 1000   -- ends, by which the rest is estimated
local BATCH_FIELDS = { 'created', 'ttl', 'next', 'sealed', 'labels', 'cancel', 'SUCCEEDED', 'FAILED', 'CANCELLED',
    'EXPIRED', 'refused' }

local function entry_us(p, name, at)
    return tonumber(string.match(redis.call('LINDEX', p .. 'batch_done:' .. name, at) or '', '^%u+ (%d+)') or '0') * 1000
end

-- When a batch goes, as things stand: its time to live after its last end; v: its first BATCH_FIELDS.
local function batch_expire_us(p, name, v, done, now)
    local from = now
    if tonumber(v[3]) - 1 - done <= 0 then
        from = done > 0 and entry_us(p, name, -1) or tonumber(v[1])
    end
    return from + tonumber(v[2]) * 1000
end

-- When its last item will have ended, at the rate of the last ends; 0: it cannot be told.
local function batch_finish_us(p, name, v, done, now)
    local left = tonumber(v[3]) - 1 - done
    if v[4] ~= '1' or left <= 0 or done == 0 then return 0 end
    local n = math.min(done, BATCH_RATE_OVER)
    return now + left * math.max(1, now - entry_us(p, name, -n)) / n
end

-- {id, BATCH_FIELDS..., how many have ended, expire_us, finish_us}; an empty list if there is none
local function batch_view(p, tenant, id, now)
    local name = tenant .. ':' .. id
    local v = redis.call('HMGET', p .. 'batch:' .. name, unpack(BATCH_FIELDS))
    if not v[1] then return {} end
    local done = redis.call('LLEN', p .. 'batch_done:' .. name)
    local expire, finish = batch_expire_us(p, name, v, done, now), batch_finish_us(p, name, v, done, now)
    for i = 1, #BATCH_FIELDS do if not v[i] then v[i] = '' end end
    table.insert(v, 1, id)
    v[#v + 1] = done
    v[#v + 1] = text(expire)
    v[#v + 1] = text(finish)
    return v
end

-- A job of a batch has ended, but not all of its end was written.
local function mend_batch_end(p, id, v)
    local name, list = v.tenant .. ':' .. v.batch, p .. 'batch_done:' .. v.tenant .. ':' .. v.batch
    local entry = v.state .. ' ' .. ms(v.finished) .. ' ' .. id .. ' ' .. v.item
    if redis.call('HEXISTS', p .. 'batch:' .. name, 'created') == 0 or redis.call('LPOS', list, entry) then return end
    redis.call('RPUSH', list, entry)
    redis.call('HINCRBY', p .. 'batch:' .. name, v.state, 1)
    redis.call('HDEL', p .. 'batch_live:' .. name, number_of(v.item))
end
