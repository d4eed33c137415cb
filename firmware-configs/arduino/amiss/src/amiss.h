/* Samples out of a microcontroller: frames, version 1, as docs/wire-format.md has them.
 *
 *   AMISS_SENDER(frames, 3, 16, AMISS_INT16, 9.80665f / 256);   // 3 channels, 16 samples a frame, value = int16 × scale
 *
 *   void loop() {
 *     amiss_clock(&frames, micros());             // every time: this is how 32 bits become 64
 *     amiss_pump(&frames, Serial);                // as many bytes as there is room for
 *     if (there_is_a_sample) amiss_add_i16(&frames, values, when_us);
 *   }
 *
 * - No heap, C99 or C++11. It takes RAM for two frames: one that is filled and one that goes out.
 * - It never waits. When a frame is full and the one before has not gone out yet, the new one is dropped whole. Its samples
 *   were counted all the same, so the receiver knows how many it lacks. `frames.dropped` counts such frames.
 * - A sensor with a buffer of its own need not lose that frame: `amiss_room` says how many samples there is room for.
 * - What was lost on the way here (a sensor's buffer ran over) is told by `amiss_skip`.
 * - Not for interrupt handlers: hand the sample to loop().
 */
#ifndef AMISS_H
#define AMISS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define AMISS_FLOAT32 0
#define AMISS_INT16 1
#define AMISS_MISSING (-32768) /* of int16; of float32 it is NaN */

#define AMISS_HEADER(kind) ((kind) == AMISS_INT16 ? 20u : 16u)
#define AMISS_PAYLOAD(channels, samples, kind) \
  (AMISS_HEADER(kind) + (unsigned long)(channels) * (unsigned)(samples) * ((kind) == AMISS_INT16 ? 2u : 4u) + 4u)
/* COBS adds a byte, and one more for each 254; then the two delimiters. */
#define AMISS_ENCODED(payload) ((payload) + (payload) / 254u + 3u)

typedef struct {
  uint8_t *payload;    /* of the frame that is filled */
  uint8_t *out;        /* the frame that goes out, encoded */
  uint64_t now_us;     /* the clock; its low half is what the last micros() said */
  uint64_t stamped_us; /* of the newest sample */
  uint32_t sequence;   /* number of the next sample */
  uint32_t dropped;    /* frames for which there was no room */
  float scale;
  uint16_t filled;   /* bytes in payload; 0: it holds no sample */
  uint16_t out_size; /* bytes in out, */
  uint16_t out_sent; /* and how many of them are gone */
  uint8_t channels;
  uint8_t samples; /* of a full frame */
  uint8_t count;   /* in the frame that is filled */
  uint8_t kind;
  uint8_t ticking; /* the clock was told once */
} amiss_sender;

/* A sender with its memory. `scale` is for AMISS_INT16; say 1 otherwise. */
#define AMISS_SENDER(name, channels_, samples_, kind_, scale_)                                                            \
  typedef char name##_holds_1_to_255_channels_and_samples_and_8192_bytes                                                  \
      [(channels_) > 0 && (channels_) < 256 && (samples_) > 0 && (samples_) < 256 &&                                      \
               AMISS_PAYLOAD(channels_, samples_, kind_) <= 8192u                                                         \
           ? 1                                                                                                            \
           : -1];                                                                                                         \
  static uint8_t name##_payload[AMISS_PAYLOAD(channels_, samples_, kind_)];                                               \
  static uint8_t name##_out[AMISS_ENCODED(AMISS_PAYLOAD(channels_, samples_, kind_))];                                    \
  static amiss_sender name = {name##_payload, name##_out, 0, 0, 0, 0, (scale_), 0, 0, 0, (channels_), (samples_), 0, (kind_), 0}

static inline void amiss_put(uint8_t *at, uint64_t value, uint8_t bytes) {
  while (bytes--) {
    *at++ = (uint8_t)value;
    value >>= 8;
  }
}

/* Four bits at a time: 64 bytes of table instead of 1024, and still no more than 2 % of a small processor. */
static inline uint32_t amiss_crc32(const uint8_t *data, uint16_t size) {
  static const uint32_t table[16] = {0x00000000, 0x1DB71064, 0x3B6E20C8, 0x26D930AC, 0x76DC4190, 0x6B6B51F4,
                                     0x4DB26158, 0x5005713C, 0xEDB88320, 0xF00F9344, 0xD6D6A3E8, 0xCB61B38C,
                                     0x9B64C2B0, 0x86D3D2D4, 0xA00AE278, 0xBDBDF21C};
  uint32_t crc = 0xFFFFFFFFu;
  while (size--) {
    crc ^= *data++;
    crc = (crc >> 4) ^ table[crc & 15];
    crc = (crc >> 4) ^ table[crc & 15];
  }
  return ~crc;
}

/* `out` gets 00, the stuffed bytes, 00. The first delimiter is so that damage never reaches from one frame to the next. */
static inline uint16_t amiss_encode(const uint8_t *payload, uint16_t size, uint8_t *out) {
  uint8_t *at = out, *code;
  *at++ = 0;
  code = at++;
  *code = 1;
  while (size--) {
    if (*payload) {
      *at++ = *payload;
      ++*code;
    }
    if (!*payload++ || *code == 255) {
      code = at++;
      *code = 1;
    }
  }
  *at++ = 0;
  return (uint16_t)(at - out);
}

/* What the clock of 32 bits says now. Call it at least every 35 minutes; once in each loop() is simplest. */
static inline void amiss_clock(amiss_sender *s, uint32_t now_us) {
  if (!s->ticking) {
    s->ticking = 1;
    s->now_us = now_us;
  } else if ((int32_t)(now_us - (uint32_t)s->now_us) > 0) {
    s->now_us += now_us - (uint32_t)s->now_us;
  }
}

/* The frame goes out with as many samples as it has; when the one before is still on its way, it is dropped. */
static inline void amiss_flush(amiss_sender *s) {
  if (!s->count) return;
  if (s->out_sent < s->out_size) {
    ++s->dropped;
  } else {
    s->payload[3] = s->count;
    amiss_put(s->payload + s->filled, amiss_crc32(s->payload, s->filled), 4);
    s->out_size = amiss_encode(s->payload, (uint16_t)(s->filled + 4), s->out);
    s->out_sent = 0;
  }
  s->count = 0;
  s->filled = 0;
}

static inline void amiss_begin_sample_(amiss_sender *s, uint32_t when_us) {
  uint64_t stamp;
  uint32_t bits;
  if (!s->ticking) amiss_clock(s, when_us);
  /* Before or after the last reading of the clock, as a sensor that buffers is read late. Never back. */
  stamp = s->now_us + (uint64_t)(int64_t)(int32_t)(when_us - (uint32_t)s->now_us);
  if (stamp < s->stamped_us || stamp >> 63) stamp = s->stamped_us;
  s->stamped_us = stamp;
  if (s->count) return;
  s->payload[0] = 1; /* version */
  s->payload[1] = s->kind;
  s->payload[2] = s->channels;
  amiss_put(s->payload + 4, s->sequence, 4);
  amiss_put(s->payload + 8, stamp, 8);
  if (s->kind == AMISS_INT16) {
    memcpy(&bits, &s->scale, 4);
    amiss_put(s->payload + 16, bits, 4);
  }
  s->filled = (uint16_t)AMISS_HEADER(s->kind);
}

static inline void amiss_end_sample_(amiss_sender *s) {
  ++s->sequence; /* after 2^32 - 1 comes 0 */
  if (++s->count == s->samples) amiss_flush(s);
}

/* A sample of an AMISS_INT16 sender, taken when micros() was `when_us`. −32768 is a missing value: `amiss_i16` makes sure that a
 * value is not taken for one. */
static inline void amiss_add_i16(amiss_sender *s, const int16_t *values, uint32_t when_us) {
  uint8_t i;
  amiss_begin_sample_(s, when_us);
  for (i = 0; i < s->channels; ++i, s->filled = (uint16_t)(s->filled + 2))
    amiss_put(s->payload + s->filled, (uint16_t)values[i], 2);
  amiss_end_sample_(s);
}

/* A sample of an AMISS_FLOAT32 sender. NaN is a missing value. */
static inline void amiss_add_f32(amiss_sender *s, const float *values, uint32_t when_us) {
  uint8_t i;
  uint32_t bits;
  amiss_begin_sample_(s, when_us);
  for (i = 0; i < s->channels; ++i, s->filled = (uint16_t)(s->filled + 4)) {
    memcpy(&bits, &values[i], 4);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) bits = 0x7FC00000u; /* one NaN for all, also with -ffast-math */
    amiss_put(s->payload + s->filled, bits, 4);
  }
  amiss_end_sample_(s);
}

/* Held within what a value may be: a sensor at its stop reads −32768, which would be missing. */
static inline int16_t amiss_i16(int32_t value) {
  return (int16_t)(value > 32767 ? 32767 : value < -32767 ? -32767 : value);
}

/* So many samples were lost before the next one: its number says so. */
static inline void amiss_skip(amiss_sender *s, uint32_t samples) {
  if (!samples) return;
  amiss_flush(s); /* the samples of a frame follow each other */
  s->sequence += samples;
}

/* So many samples can be added now without a frame being dropped. A sensor that buffers may keep the others until there is room:
 * what piled up while nobody looked comes faster than the line takes it. */
static inline uint16_t amiss_room(const amiss_sender *s) {
  uint16_t left = (uint16_t)(s->samples - 1 - s->count);
  return s->out_sent < s->out_size ? left : (uint16_t)(left + s->samples);
}

/* Bytes that wait to go out, and how many. */
static inline const uint8_t *amiss_waiting(const amiss_sender *s, uint16_t *size) {
  *size = (uint16_t)(s->out_size - s->out_sent);
  return s->out + s->out_sent;
}

/* So many of them are gone. */
static inline void amiss_sent(amiss_sender *s, uint16_t size) { s->out_sent = (uint16_t)(s->out_sent + size); }

#ifdef __cplusplus
/* As many bytes as `port` takes without waiting. */
template <class Port> inline void amiss_pump(amiss_sender *s, Port &port) {
  uint16_t size;
  const uint8_t *data = amiss_waiting(s, &size);
  int room = port.availableForWrite();
  if (!size || room <= 0) return;
  if (size > (unsigned)room) size = (uint16_t)room;
  amiss_sent(s, (uint16_t)port.write(data, size));
}
#endif

#endif
