// MPU-6050 → acceleration on three axes, 500 times a second. Wiring and settings: README.md beside this file.
//
// The sensor's own clock paces the samples: its FIFO holds 340 ms of them and is looked at every 5 ms. Names of registers and
// bits are those of the register map (InvenSense, RM-MPU-6000A-00 rev. 4.2).
#include <amiss.h>
#include <amiss_i2c.h>

static const uint8_t ADDRESS = 0x68;  // pin AD0 low; 0x69 with it high

static const uint8_t SMPLRT_DIV = 0x19;
static const uint8_t CONFIG = 0x1A;
static const uint8_t ACCEL_CONFIG = 0x1C;
static const uint8_t FIFO_EN = 0x23;
static const uint8_t INT_STATUS = 0x3A;
static const uint8_t USER_CTRL = 0x6A;
static const uint8_t PWR_MGMT_1 = 0x6B;
static const uint8_t FIFO_COUNTH = 0x72;
static const uint8_t FIFO_R_W = 0x74;
static const uint8_t WHO_AM_I = 0x75;  // reads 68, whatever AD0 is

static const uint8_t CLKSEL_PLL_X = 0x01;      // PWR_MGMT_1: awake, paced by the gyroscope, which is steadier
static const uint8_t DLPF_184_HZ = 0x01;       // CONFIG: filtered before it is sampled; 1 kHz inside
static const uint8_t EVERY_SECOND = 0x01;      // SMPLRT_DIV: 1 kHz / (1 + 1)
static const uint8_t AFS_SEL_8_G = 0x02 << 3;  // ACCEL_CONFIG: ±8 g, 4096 steps to a g
static const uint8_t ACCEL_FIFO_EN = 0x08;     // FIFO_EN: what goes in
static const uint8_t USER_FIFO_EN = 0x40;      // USER_CTRL
static const uint8_t FIFO_RESET = 0x04;        // USER_CTRL; only while USER_FIFO_EN is 0
static const uint8_t FIFO_OFLOW_INT = 0x10;    // INT_STATUS

static const uint32_t PERIOD_US = 2000;
static const uint32_t LOOK_EVERY_US = 5000;
static const uint32_t TRY_EVERY_US = 500000;
static const uint32_t LOST_POWER = 50;  // without so many samples in a row: it has forgotten that it was to measure
static const uint8_t SIZE = 6;          // of a sample in the FIFO
static const uint8_t AT_ONCE = 5;       // samples: 30 bytes, as an Uno's Wire holds 32

AMISS_SENDER(frames, 3, 16, AMISS_INT16, 9.80665f / 4096);  // m/s²

static bool ready = false, ran = false;
static uint32_t looked_us = 0;  // when it was looked at last
static uint32_t newest_us = 0;  // when the newest sample was taken, nearly

static bool empty_fifo() {
  return amiss_i2c_write(ADDRESS, USER_CTRL, 0) && amiss_i2c_write(ADDRESS, USER_CTRL, FIFO_RESET) &&
         amiss_i2c_write(ADDRESS, USER_CTRL, USER_FIFO_EN);
}

static bool begin() {
  uint8_t id = 0, range = 0;
  return amiss_i2c_read(ADDRESS, WHO_AM_I, &id, 1) && id == 0x68 &&
         amiss_i2c_write(ADDRESS, PWR_MGMT_1, CLKSEL_PLL_X) &&  // it wakes up asleep
         amiss_i2c_write(ADDRESS, CONFIG, DLPF_184_HZ) &&
         amiss_i2c_write(ADDRESS, SMPLRT_DIV, EVERY_SECOND) &&
         amiss_i2c_write(ADDRESS, ACCEL_CONFIG, AFS_SEL_8_G) &&
         amiss_i2c_read(ADDRESS, ACCEL_CONFIG, &range, 1) && range == AFS_SEL_8_G &&
         amiss_i2c_write(ADDRESS, FIFO_EN, ACCEL_FIFO_EN) && empty_fifo();
}

// Samples since the newest one, by the clock: for holes whose width nobody counted.
static uint32_t passed(uint32_t now_us) { return (now_us - newest_us + PERIOD_US / 2) / PERIOD_US; }

// False when the bus failed.
static bool take(uint32_t now_us) {
  uint8_t status, count[2], raw[SIZE * AT_ONCE];
  if (!amiss_i2c_read(ADDRESS, INT_STATUS, &status, 1) || !amiss_i2c_read(ADDRESS, FIFO_COUNTH, count, 2)) return false;
  if (status & FIFO_OFLOW_INT) {
    // 1024 bytes are no whole number of samples: once it has run over nobody knows where one begins.
    if (!empty_fifo()) return false;
    amiss_skip(&frames, passed(now_us));
    newest_us = now_us;
    return true;
  }
  uint16_t left = ((uint16_t)count[0] << 8 | count[1]) / SIZE;  // the one that is just being written stays
  if (!left && passed(now_us) > LOST_POWER) return false;
  uint16_t room = amiss_room(&frames);  // the others wait in the FIFO
  while (left && room) {
    uint8_t batch = left < AT_ONCE ? (uint8_t)left : AT_ONCE;
    if (batch > room) batch = (uint8_t)room;
    room = (uint16_t)(room - batch);
    if (!amiss_i2c_read(ADDRESS, FIFO_R_W, raw, SIZE * batch)) return false;
    for (const uint8_t *at = raw; batch; --batch, at += SIZE) {
      int16_t values[3];
      for (uint8_t axis = 0; axis < 3; ++axis)  // high byte first
        values[axis] = amiss_i16((int16_t)((uint16_t)at[2 * axis] << 8 | at[2 * axis + 1]));
      newest_us = now_us - --left * PERIOD_US;
      amiss_add_i16(&frames, values, newest_us);
    }
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
