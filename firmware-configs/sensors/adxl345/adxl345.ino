// ADXL345 → acceleration on three axes, 800 times a second. Wiring and settings: README.md beside this file.
//
// The sensor's own clock paces the samples: its FIFO holds 40 ms of them and is looked at every 5 ms. Names of registers and
// bits are those of the data sheet (Analog Devices, ADXL345 Rev. G).
#include <amiss.h>
#include <amiss_i2c.h>

static const uint8_t ADDRESS = 0x53;  // pin SDO/ALT ADDRESS low; 0x1D with it high

static const uint8_t DEVID = 0x00;  // reads E5
static const uint8_t BW_RATE = 0x2C;
static const uint8_t POWER_CTL = 0x2D;
static const uint8_t INT_SOURCE = 0x30;
static const uint8_t DATA_FORMAT = 0x31;
static const uint8_t DATAX0 = 0x32;
static const uint8_t FIFO_CTL = 0x38;
static const uint8_t FIFO_STATUS = 0x39;

static const uint8_t RATE_800_HZ = 0x0D;         // BW_RATE; the most that I2C at 400 kHz is meant for
static const uint8_t FULL_RES_16_G = 0x08 | 3;   // DATA_FORMAT: FULL_RES, Range ±16 g; 256 steps to a g
static const uint8_t STREAM = 0x80 | 16;         // FIFO_CTL: the oldest go when it is full
static const uint8_t MEASURE = 0x08;             // POWER_CTL
static const uint8_t OVERRUN = 0x01;             // INT_SOURCE
static const uint8_t ENTRIES = 0x3F;             // FIFO_STATUS

static const uint32_t PERIOD_US = 1250;
static const uint32_t LOOK_EVERY_US = 5000;
static const uint32_t TRY_EVERY_US = 500000;
static const uint32_t LOST_POWER = 80;  // without so many samples in a row: it has forgotten that it was to measure

AMISS_SENDER(frames, 3, 16, AMISS_INT16, 9.80665f / 256);  // m/s²

static bool ready = false, ran = false;
static uint32_t looked_us = 0;  // when it was looked at last
static uint32_t newest_us = 0;  // when the newest sample was taken, nearly

static bool begin() {
  uint8_t id = 0, format = 0;
  return amiss_i2c_read(ADDRESS, DEVID, &id, 1) && id == 0xE5 &&
         amiss_i2c_write(ADDRESS, POWER_CTL, 0) &&  // standby, as the data sheet wants it for changes
         amiss_i2c_write(ADDRESS, BW_RATE, RATE_800_HZ) &&
         amiss_i2c_write(ADDRESS, DATA_FORMAT, FULL_RES_16_G) &&
         amiss_i2c_write(ADDRESS, FIFO_CTL, 0) &&  // bypass: empties it
         amiss_i2c_write(ADDRESS, FIFO_CTL, STREAM) &&
         amiss_i2c_read(ADDRESS, DATA_FORMAT, &format, 1) && format == FULL_RES_16_G &&
         amiss_i2c_write(ADDRESS, POWER_CTL, MEASURE);
}

// Samples since the newest one, by the clock: for holes whose width nobody counted.
static uint32_t passed(uint32_t now_us) { return (now_us - newest_us + PERIOD_US / 2) / PERIOD_US; }

// False when the bus failed.
static bool take(uint32_t now_us) {
  uint8_t source, status, raw[6];
  if (!amiss_i2c_read(ADDRESS, INT_SOURCE, &source, 1) || !amiss_i2c_read(ADDRESS, FIFO_STATUS, &status, 1)) return false;
  uint8_t entries = status & ENTRIES;
  if ((source & OVERRUN) && passed(now_us) > entries) amiss_skip(&frames, passed(now_us) - entries);
  if (!entries && passed(now_us) > LOST_POWER) return false;
  uint16_t room = amiss_room(&frames);  // the others wait in the FIFO
  for (uint8_t left = entries; left && room; --left, --room) {
    // All six bytes in one go: that is what moves the FIFO on. The next address on the bus takes longer than the 5 µs that it
    // needs for that.
    if (!amiss_i2c_read(ADDRESS, DATAX0, raw, 6)) return false;
    int16_t values[3];
    for (uint8_t axis = 0; axis < 3; ++axis)  // low byte first
      values[axis] = amiss_i16((int16_t)((uint16_t)raw[2 * axis + 1] << 8 | raw[2 * axis]));
    newest_us = now_us - (left - 1) * PERIOD_US;
    amiss_add_i16(&frames, values, newest_us);
    amiss_pump(&frames, Serial);
  }
  return true;
}

void setup() {
  Serial.begin(115200);
  amiss_i2c_begin();
  looked_us = micros() - TRY_EVERY_US;
}

void loop() {
  uint32_t now_us = micros();
  amiss_clock(&frames, now_us);
  amiss_pump(&frames, Serial);
  if (now_us - looked_us < (ready ? LOOK_EVERY_US : TRY_EVERY_US)) return;
  looked_us = now_us;
  if (ready) {
    ready = take(now_us);
  } else {
    amiss_i2c_again();
    if (!(ready = begin())) return;
    now_us = micros();
    if (ran) amiss_skip(&frames, passed(now_us));  // it was away
    ran = true;
    newest_us = now_us;
  }
}
