---- packs ----
-- Items of a batch that come in one call with the same terms lie in one record, `pack:PREFIX`, instead of one each:
-- what is done with many of them is done once. An item's job id is PREFIX (30 digits) and its index. An item waits,
-- runs and succeeds in its pack; whatever else happens to it (cancelled, late, failed, handed back, left by a dead
-- worker) it first gets a record of its own (own_job) and is a job like any other from then on, under the same id.
-- Items are claimed in their order. `next` is the first that nobody has claimed; the range from there on waits in the
-- line as one member, a token. Those that one claim took are a run: one lease, also by a token.

local packs = { MAX = 120 } -- functions too many to be locals, of which a chunk has 200 at most
packs.FIXED, packs.RUN, packs.ITEM = '<dddHc0Hc0ddHc0dHc0', '<BddHc0', '<Hc0Hc0'
local WAITS, RUNS, DONE, OUT = 81, 82, 83, 88 -- an item in the map: Q, R, S; X: it has a record of its own

local HEX = {}
do -- by hand: there is no `string` yet when the library is loaded
    local digits = { '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f' }
    for i = 0, 255 do HEX[i] = digits[(i - i % 16) / 16 + 1] .. digits[i % 16 + 1] end
end
packs.KEPT, packs.RESULT, packs.MASK, packs.INDEX = {}, {}, {}, {} -- fields by index, and the index by its digits
for i = 0, 255 do
    packs.KEPT[i], packs.RESULT[i], packs.MASK[i], packs.INDEX[HEX[i]] = 'i' .. HEX[i], 'o' .. HEX[i], 'm' .. HEX[i] .. '.', i
end

-- n items of a pack from index `from` on: PREFIX, from, '+', n.
function packs.token(prefix, from, n) return prefix .. HEX[from] .. '+' .. HEX[n] end
function packs.is_token(id) return #id == 35 end
function packs.parts(of) return string.sub(of, 1, 30), tonumber(string.sub(of, 31, 32), 16), tonumber(string.sub(of, 34), 16) end
function packs.prefix_of(id) return string.sub(id, 1, 30) end
function packs.index_of(id) return packs.INDEX[string.sub(id, 31)] or packs.MAX end

-- The map has a byte for the state of each item, one for where its run begins, and one for `next`. nil: no such pack.
function packs.read(p, prefix)
    local key = p .. 'pack:' .. prefix
    local v = redis.call('HMGET', key, 'fixed', 'map')
    if not v[1] or not v[2] then return nil end
    local k = { prefix = prefix, key = key, map = { string.byte(v[2], 1, -1) }, run = {}, set = {} }
    k.created, k.ttl, k.weight, k.tenant, k.model, k.deadline, k.place, k.batch, k.number, k.call =
        struct.unpack(packs.FIXED, v[1])
    k.n = (#k.map - 1) / 2
    k.next = k.map[#k.map]
    k.token = packs.token(prefix, 0, k.n)
    return k
end

-- The run of an item that has been claimed: {n =, started =, charge =, worker =}.
function packs.run_of(k, i)
    local from = k.map[k.n + i + 1]
    local run = k.run[from]
    if not run then
        run = {}
        run.n, run.started, run.charge, run.worker = struct.unpack(packs.RUN, redis.call('HGET', k.key, 'r' .. HEX[from]))
        run.token = packs.token(k.prefix, from, run.n)
        k.run[from] = run
    end
    return run
end

-- What is kept of an item that has been claimed. All of its run are read at once, for they are likely to be wanted.
function packs.item_of(k, i)
    local run = packs.run_of(k, i)
    if not run.items then
        local from, fields = k.map[k.n + i + 1], {}
        for m = 1, run.n do fields[m] = packs.KEPT[from + m - 1] end
        run.items = redis.call('HMGET', k.key, unpack(fields))
        run.from = from
    end
    return run.items[i - run.from + 1]
end

-- An item as unpack_job gives a job, and its spec and result; nil: it is not in there (any more).
function packs.job(k, i)
    local state = k.map[i + 1]
    if i >= k.n or state == OUT then return nil end
    local v = redis.call('HMGET', k.key, packs.KEPT[i], packs.RESULT[i])
    local image, item, at = struct.unpack(packs.ITEM, v[1])
    local j = { created = k.created, deadline = k.deadline, place = k.place + i, ttl = k.ttl, weight = k.weight,
        tenant = k.tenant, model = k.model, image = image, request_id = '', batch = k.batch, item = item, state = 'QUEUED',
        cancel = false, group = 0, fence = 0, attempts = 0, started = 0, charge = 0, finished = 0, expire = 0, worker = '',
        by = '' }
    if state ~= WAITS then
        local run = packs.run_of(k, i)
        j.state, j.fence, j.attempts, j.started, j.charge, j.worker = 'RUNNING', 1, 1, run.started, run.charge, run.worker
    end
    if state == DONE then
        j.state, j.finished, j.by = 'SUCCEEDED', struct.unpack('<d', v[2]), j.worker .. ' 1'
        j.expire = j.finished + k.ttl * 1000
    end
    return j, string.sub(v[1], at, -2), v[2] and string.sub(v[2], 9)
end

-- packs.job by the job's id. seen: packs by prefix, read by this call already.
function packs.look(p, id, seen)
    local prefix = packs.prefix_of(id)
    local k = seen[prefix] or packs.read(p, prefix)
    seen[prefix] = k
    if k then return packs.job(k, packs.index_of(id)) end
end

-- Like job_of, but of items in packs as well; to be read alone.
local function look_job(p, id, seen)
    return job_of(p, id) or (packs.look(p, id, seen))
end

-- What a reader of a job gets, in this order (queue_redis_parse.c reads it by place). Of a job that is not there the
-- tenant is ''. seen: as for packs.look, or nil.
local function view(p, id, seen)
    local v = redis.call('HMGET', p .. 'job:' .. id, 'fixed', 'state', 'spec', 'result', 'reason', 'message')
    local j = unpack_job(v[1], v[2])
    if not j then j, v[3], v[4] = packs.look(p, id, seen or {}) end
    if not j then return { id, '', '', '', '', '', '', '', 0, 0, 0, 0, 0, 0, 0, 0, '', '', '' } end
    return { id, j.tenant, j.request_id, j.state, v[3] or '', v[4] or '', v[5] or '', v[6] or '', j.attempts,
        j.cancel and 1 or 0, j.created, j.started, j.finished, j.deadline, j.expire, j.ttl, j.model, j.image, j.worker }
end

-- Where a job's masks are: the key, and what stands before their numbers.
function packs.masks_at(p, id)
    local key = p .. 'job:' .. id
    if redis.call('EXISTS', key) == 1 then return key, 'mask' end
    return p .. 'pack:' .. packs.prefix_of(id), 'm' .. string.sub(id, 31) .. '.'
end

-- All of them, and their bytes.
function packs.all_masks(p, id)
    local key, name = packs.masks_at(p, id)
    local out, bytes = {}, 0
    while true do
        local v = redis.call('HMGET', key, name .. #out, name .. (#out + 1)) -- most have one
        for i = 1, 2 do
            if not v[i] then return out, bytes end
            out[#out + 1] = v[i]
            bytes = bytes + #v[i]
        end
    end
end

-- Calls f(id) for each job that a member of `live`, `batch_live` or a line stands for. -> how many
function packs.each(member, f)
    if not packs.is_token(member) then
        f(member)
        return 1
    end
    local prefix, from, n = packs.parts(member)
    for i = from, from + n - 1 do f(prefix .. HEX[i]) end
    return n
end

-- The member of a line for what waits of a pack.
function packs.waiting(k) return packs.token(k.prefix, k.next, k.n - k.next) end

-- How many of a pack have not ended.
function packs.left(k)
    local n = 0
    for i = 1, k.n do if k.map[i] == WAITS or k.map[i] == RUNS then n = n + 1 end end
    return n
end

-- How many jobs live: members of `live`, some of which are packs.
function packs.live_jobs(p)
    return redis.call('ZCARD', p .. 'live') + tonumber(redis.call('HGET', p .. 'count', 'more') or '0')
end

-- How many jobs the members of a line are.
function packs.jobs_among(members)
    local n = 0
    for _, m in ipairs(members) do n = n + (packs.is_token(m) and tonumber(string.sub(m, 34), 16) or 1) end
    return n
end
