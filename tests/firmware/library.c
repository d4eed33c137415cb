/* The library for sketches as a shared library, for tests/firmware/test_library.py. */
#include <amiss.h>

AMISS_SENDER(sketch, 3, 16, AMISS_INT16, 0.5f); /* as a sketch makes one: it must compile as C, too */

static uint8_t payload[8192], out[AMISS_ENCODED(8192u)];
static amiss_sender sender;

void start(int kind, int channels, int samples, float scale, uint32_t sequence, uint64_t time_us) {
  amiss_sender fresh = {0};
  (void)sketch;
  fresh.payload = payload;
  fresh.out = out;
  fresh.kind = (uint8_t)kind;
  fresh.channels = (uint8_t)channels;
  fresh.samples = (uint8_t)samples;
  fresh.scale = scale;
  fresh.sequence = sequence;
  fresh.now_us = time_us;
  fresh.ticking = time_us != 0;
  sender = fresh;
}

void add(const void *values, uint32_t when_us) {
  if (sender.kind == AMISS_INT16)
    amiss_add_i16(&sender, (const int16_t *)values, when_us);
  else
    amiss_add_f32(&sender, (const float *)values, when_us);
}

void tick(uint32_t now_us) { amiss_clock(&sender, now_us); }
void skip(uint32_t samples) { amiss_skip(&sender, samples); }
void flush(void) { amiss_flush(&sender); }
uint32_t dropped(void) { return sender.dropped; }
int clamped(int32_t value) { return amiss_i16(value); }

/* At most `room` bytes of what waits. */
int take(uint8_t *into, int room) {
  uint16_t size;
  const uint8_t *data = amiss_waiting(&sender, &size);
  if (size > room) size = (uint16_t)room;
  memcpy(into, data, size);
  amiss_sent(&sender, size);
  return size;
}
