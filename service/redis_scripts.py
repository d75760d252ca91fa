"""The scripts by which Redis keeps predictions and what became known of models, each in one step.

What they find is of the type that it should be, or makes way: nothing that lies there may make a script fail, which
would be taken for a Redis that does. The last or only part of an answer is what was refused: keys and reasons by turns.
"""

from __future__ import annotations

from typing import Final

_CHECKS = """
local wrong = {}
local function refuse(key, why)
  table.insert(wrong, key)
  table.insert(wrong, why)
end
local function be(key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then
    redis.call('DEL', key)
    refuse(key, 'type')
  end
end
-- A whole number of rows or bytes that doubles hold, as Redis writes it, which adds to no other; or else nil or false.
local function number(text)
  return text and #text < 16 and (text == '0' or string.match(text, '^[1-9]%d*$')) and tonumber(text)
end
"""

# KEYS held, order; ARGV bytes of all predictions, seconds they live, bytes an entry takes beside itself
_PREDICTIONS = f"""{_CHECKS}
local held, order = KEYS[1], KEYS[2]
local limit, ttl, entry = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
be(held, 'hash')
be(order, 'zset')
if not number(redis.call('HGET', held, '#bytes')) and redis.call('EXISTS', held) == 1 then
  local bytes = 0
  for _, id in ipairs(redis.call('HKEYS', held)) do
    if id ~= '#bytes' then bytes = bytes + redis.call('HSTRLEN', held, id) + 2 * #id + entry end
  end
  redis.call('HSET', held, '#bytes', string.format('%.0f', bytes))
  refuse(held, '#bytes')
end
local function drop(id)
  local size = redis.call('HSTRLEN', held, id)
  if redis.call('HDEL', held, id) == 1 then redis.call('HINCRBY', held, '#bytes', -(size + 2 * #id + entry)) end
  redis.call('ZREM', order, id)
end
local function keep(id, value)
  local t = redis.call('TIME')
  local now = t[1] * 1000000 + t[2]
  drop(id)
  if #value + 2 * #id + entry > limit then return end
  redis.call('HSET', held, id, value)
  redis.call('HINCRBY', held, '#bytes', #value + 2 * #id + entry)
  redis.call('ZADD', order, string.format('%.0f', now), id)
  local old = string.format('%.0f', now - ttl * 1000000)
  for _, each in ipairs(redis.call('ZRANGEBYSCORE', order, '-inf', old, 'LIMIT', 0, 16)) do drop(each) end
  while tonumber(redis.call('HGET', held, '#bytes')) > limit do
    local first = redis.call('ZRANGE', order, 0, 0)[1]
    if not first then redis.call('DEL', held) return end
    drop(first)
  end
  redis.call('EXPIRE', held, ttl)
  redis.call('EXPIRE', order, ttl)
end
"""
PUT: Final = f"""{_PREDICTIONS}
local id, token, value = ARGV[4], ARGV[5], ARGV[6]
-- It may have been told before it was written.
if redis.call('HGET', held, id) ~= token then keep(id, value) end
return wrong
"""
RECALL: Final = f"""{_PREDICTIONS}
local id = ARGV[4]
-- None that is larger was ever kept, and it need not travel.
if redis.call('HSTRLEN', held, id) > limit then
  drop(id)
  refuse(id, 'size')
end
return {{redis.call('HGET', held, id) or '', wrong}}
"""
DROP: Final = f"""{_PREDICTIONS}
drop(ARGV[4])
return wrong
"""
_RINGS = """
-- What no state is as long as need not travel.
local function field(state, name) return string.sub(redis.call('HGET', state, name) or '', 1, 64) end
local function sound(ring, count, capacity, size)
  return redis.call('STRLEN', ring) == math.min(count, capacity) * size
end
local function write(ring, count, capacity, size, bytes)
  local rows = #bytes / size
  local skipped = math.max(rows - capacity, 0)
  local at = (count + skipped) % capacity
  local ahead = math.min(rows - skipped, capacity - at)
  redis.call('SETRANGE', ring, at * size, string.sub(bytes, skipped * size + 1, (skipped + ahead) * size))
  redis.call('SETRANGE', ring, 0, string.sub(bytes, (skipped + ahead) * size + 1))
end
local function live(ttl, first)
  for i = first, first + 2 do redis.call('EXPIRE', KEYS[i], ttl) end
end
"""
TELL: Final = f"""{_PREDICTIONS}{_RINGS}
local id, token, expected, after, count, bytes = ARGV[4], ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8]), ARGV[9]
local state, rows, capacity, size = KEYS[3], KEYS[4], tonumber(ARGV[10]), tonumber(ARGV[11])
be(state, 'hash')
be(rows, 'string')
if id ~= '' and redis.call('HGET', held, id) == token then return {{'told', '', wrong}} end
local found = field(state, 'test')
if found ~= expected then return {{'again', found, wrong}} end
if not sound(rows, count, capacity, size) then
  -- Redis made room: what is left says nothing.
  redis.call('HDEL', state, 'test')
  redis.call('DEL', rows)
  return {{'again', '', wrong}}
end
if id ~= '' then keep(id, token) end
write(rows, count, capacity, size, bytes)
redis.call('HSET', state, 'test', after)
live(ttl, 3)
return {{'counted', '', wrong}}
"""
# KEYS state, rows, flags; ARGV seconds they live, rows kept, flags
SCORE: Final = f"""{_CHECKS}{_RINGS}
local state, flags, capacity, bytes = KEYS[1], KEYS[3], tonumber(ARGV[2]), ARGV[3]
be(state, 'hash')
be(flags, 'string')
local scored = redis.call('HGET', state, 'scored')
local count = number(scored or '0')
if not count then
  count = 0
  refuse(state, 'scored')
end
if not sound(flags, count, capacity, 1) then
  count = 0
  redis.call('DEL', flags)
end
write(flags, count, capacity, 1, bytes)
redis.call('HSET', state, 'scored', string.format('%.0f', count + #bytes))
live(ARGV[1], 1)
return wrong
"""
# KEYS state, rows, flags; ARGV bytes of all rows, and of all flags
KNOWN: Final = f"""{_CHECKS}{_RINGS}
be(KEYS[1], 'hash')
be(KEYS[2], 'string')
be(KEYS[3], 'string')
-- One byte more than there should be tells that there is too much.
local rows, flags = redis.call('GETRANGE', KEYS[2], 0, ARGV[1]), redis.call('GETRANGE', KEYS[3], 0, ARGV[2])
return {{field(KEYS[1], 'test'), field(KEYS[1], 'scored'), rows, flags, wrong}}
"""
