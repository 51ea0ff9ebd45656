---- when a job would be done ----

-- What a job of the model takes, in the mean and with so many phrases: by the straight line of least squares through
-- what the last jobs took, kept between a cost that does not depend on phrases and one in proportion to them.
local function cost_with(p, model, phrases)
    local v = redis.call('HMGET', p .. 'cost', model, model .. '/phrases')
    local mean = tonumber(v[1] or '0')
    local n, nn, nc = fit_of(v[2])
    if mean <= 0 or not n or n <= 0 or nn - n * n < 0.05 then return mean, mean end
    local slope = math.max(0, math.min(mean / n, (nc - n * mean) / (nn - n * n)))
    return mean, math.max(1, mean + slope * (phrases - n))
end

-- How many jobs of a line lie before a place. A member may be many: of so many they are counted, and of the rest taken
-- to be as many in the mean.
function packs.count_line(line, place)
    local COUNTED = 200
    local all = redis.call('ZCOUNT', line, '-inf', place)
    local n = packs.jobs_among(redis.call('ZRANGEBYSCORE', line, '-inf', place, 'LIMIT', 0, COUNTED))
    return all <= COUNTED and n or math.floor(n * all / COUNTED)
end

-- How many of the model's waiting jobs are begun before one that comes now, and how many wait in all: that of the
-- tenant's own line which stand before it, and of each other tenant as many as its virtual time lets it begin until
-- the tenant's own has come so far (see lines.lua). Of tenants beyond the first hundred nothing is counted.
local function ahead_of(p, tenant, model, place, weight, cost)
    local line = p .. 'line:' .. model .. ':'
    local own = packs.count_line(line .. tenant, '(' .. text(place))
    local since = redis.call('ZSCORE', p .. 'fair:' .. model, tenant)
    local turn = tonumber(since or '0')
    if not since then
        turn = math.max(tonumber(redis.call('HGET', p .. 'clock', model) or '0'),
            tonumber(redis.call('ZSCORE', p .. 'idle:' .. model, tenant) or '0'))
    end
    turn = turn + own * cost / weight
    local ahead, waiting = own, 0
    local fair = redis.call('ZRANGE', p .. 'fair:' .. model, 0, 99, 'WITHSCORES')
    for i = 1, #fair, 2 do
        local other, time, length = fair[i], tonumber(fair[i + 1]), packs.count_line(line .. fair[i], '+inf')
        waiting = waiting + length
        if other ~= tenant and time <= turn and length > 0 then
            local first = redis.call('ZRANGE', line .. other, 0, 0)
            local j = packs.is_token(first[1]) and packs.read(p, packs.prefix_of(first[1])) or job_of(p, first[1])
            local price = cost / (j and j.weight or 1)
            local steps = (turn - time) / price
            local begun = math.ceil(steps)
            if begun == steps and other < tenant then begun = begun + 1 end
            ahead = ahead + math.min(length, begun)
        end
    end
    return ahead, waiting
end

-- tenant model is_default request_id phrases priority weight  ->  {1 if the tenant's request_id is known, now, live
-- workers, jobs that run or wait for another attempt, waiting jobs that are begun before, mean cost, this job's cost,
-- waiting jobs}, or an error
local function estimate(keys, a)
    local p, model, now = keys[1], a[2], now_us()
    local unknown = check_model(p, { model = model, is_default = a[3] == '1' })
    if unknown then return unknown end
    local mean, cost = cost_with(p, model, tonumber(a[5]))
    local last = tonumber(redis.call('HGET', p .. 'count', 'place') or '0')
    local place = math.max(last + 1, now) - tonumber(a[6]) * HEAD_START_US
    local ahead, waiting = ahead_of(p, a[1], model, place, tonumber(a[7]), mean > 0 and mean or FIRST_COST_US)
    local known = a[4] ~= '' and redis.call('EXISTS', p .. 'request:' .. a[1] .. ':' .. a[4]) or 0
    local busy = math.max(0, redis.call('LLEN', p .. 'ready:' .. model) - waiting)
    return { known, now, live_workers(p, model, now), busy, ahead, math.ceil(mean), math.ceil(cost), waiting }
end
