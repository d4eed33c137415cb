// SCT-013-030 → current of one mains conductor, five times a second. Wiring and settings: README.md beside this file.
// MAINS IS DEADLY: only around an insulated conductor, see there.
//
// The converter is read 2,000 times a second on a schedule of micros(); what comes too late for its slot is left out and counted.
// A value is missing when too many slots were, and when the converter was at its stop: then it would be too small.
#include <amiss.h>

#if defined(ARDUINO_ARCH_ESP32)
static const uint8_t PIN = 36;  // ADC1: can be read while the radio is on
#else
static const uint8_t PIN = A0;
#endif
static const float AMPERE_PER_VOLT = 30.0f;  // the 030: 1 V at 30 A. The 000 (100 A, 50 mA) with 22 Ω across it: 90.9f
static const float VOLT_PER_STEP = 3.3f / 4096;
static const int16_t MIDDLE = 2048, STOP = 4095;  // of 12 bits

static const uint32_t SLOT_US = 500;
static const uint16_t SLOTS = 400;  // of a sample
static const uint16_t MOST_MISSED = SLOTS / 10;

AMISS_SENDER(frames, 2, 1, AMISS_FLOAT32, 1);

static uint32_t due_us, began_us;  // the next slot; the first of this sample
static uint16_t slot = 0, taken = 0;
static int32_t sum = 0;
static uint32_t squares = 0;  // 400 × 2048² is less than 2^32
static int16_t least = STOP, most = 0;

static void finish() {
  float values[2] = {NAN, NAN};
  if (taken + MOST_MISSED >= SLOTS && least > 0 && most < STOP) {
    // The middle is measured and not trusted: the resistors that make it are no better than 5 %.
    float mean = (float)sum / taken;
    float variance = (float)squares / taken - mean * mean;
    float up = most - MIDDLE - mean, down = mean + MIDDLE - least;
    values[0] = sqrtf(variance > 0 ? variance : 0) * VOLT_PER_STEP * AMPERE_PER_VOLT;
    values[1] = (up > down ? up : down) * VOLT_PER_STEP * AMPERE_PER_VOLT;
  }
  amiss_add_f32(&frames, values, began_us);
  slot = taken = 0;
  sum = 0;
  squares = 0;
  least = STOP;
  most = 0;
}

void setup() {
  Serial.begin(115200);
  analogReadResolution(12);
  due_us = micros() + SLOT_US;
}

void loop() {
  uint32_t now_us = micros();
  amiss_clock(&frames, now_us);
  amiss_pump(&frames, Serial);
  if ((int32_t)(now_us - due_us) < 0) return;
  if (!slot) began_us = due_us;
  if (now_us - due_us < SLOT_US / 2) {
    int16_t raw = (int16_t)analogRead(PIN);
    int16_t off = raw - MIDDLE;
    sum += off;
    squares += (uint32_t)((int32_t)off * off);
    if (raw < least) least = raw;
    if (raw > most) most = raw;
    ++taken;
  }
  due_us += SLOT_US;
  if (++slot == SLOTS) finish();
}
