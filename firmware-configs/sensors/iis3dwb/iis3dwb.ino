// IIS3DWB → acceleration on three axes, 26,667 times a second. Wiring, and which line carries it: README.md beside this file.
//
// For a Raspberry Pi Pico (RP2040) and its own USB port. The sensor's clock paces the samples: its FIFO holds 19 ms of them.
// Names of registers and bits are those of the data sheet (ST, IIS3DWB DocID DS12569).
#include <SPI.h>
#include <amiss.h>

#if defined(ARDUINO_ARCH_RP2040)
static const uint8_t SELECT = 17;  // GP17; GP16 MISO, GP18 SCK, GP19 MOSI are the board's usual ones
#else
static const uint8_t SELECT = SS;
#endif

static const uint8_t READ = 0x80;

static const uint8_t FIFO_CTRL3 = 0x09;
static const uint8_t FIFO_CTRL4 = 0x0A;
static const uint8_t WHO_AM_I = 0x0F;  // reads 7B
static const uint8_t CTRL1_XL = 0x10;
static const uint8_t CTRL3_C = 0x12;
static const uint8_t FIFO_STATUS1 = 0x3A;  // DIFF_FIFO, low byte; STATUS2 follows
static const uint8_t FIFO_DATA_OUT_TAG = 0x78;

static const uint8_t XL_EN_16_G = 5 << 5 | 1 << 2;  // CTRL1_XL: XL_EN 101, FS_XL 01 = ±16 g, 0.488 mg a step
static const uint8_t BDU_IF_INC = 0x40 | 0x04;      // CTRL3_C
static const uint8_t BDR_XL_26667 = 0x0A;           // FIFO_CTRL3: every sample goes into the FIFO
static const uint8_t CONTINUOUS = 0x06;             // FIFO_CTRL4: the oldest go when it is full
static const uint8_t BYPASS = 0x00;                 // FIFO_CTRL4: empties it
static const uint8_t OVR_LATCHED = 0x08;            // FIFO_STATUS2; reading clears it
static const uint8_t DIFF_FIFO_HIGH = 0x03;         // FIFO_STATUS2
static const uint8_t TAG_ACCELEROMETER = 0x02;      // FIFO_DATA_OUT_TAG, bits 7 to 3

static const uint8_t SIZE = 7;      // of a word of the FIFO: its tag, and three axes
static const uint8_t AT_ONCE = 16;  // words: 90 µs on the bus, in which the line sends 18 bytes
static const uint32_t TRY_EVERY_US = 500000;
static const uint32_t SILENT_US = 50000;  // without a sample for so long: it has forgotten that it was to measure

AMISS_SENDER(frames, 3, 255, AMISS_INT16, 0.000488f * 9.80665f);  // m/s²; 9.6 ms a frame

static bool ready = false, ran = false;
static uint32_t tried_us = 0;
static uint32_t newest_us = 0;  // when the newest sample was taken, nearly

static void transfer(uint8_t reg, uint8_t *data, size_t size) {
  SPI.beginTransaction(SPISettings(10000000, MSBFIRST, SPI_MODE3));  // the most that it can
  digitalWrite(SELECT, LOW);
  SPI.transfer(reg);
  SPI.transfer(data, size);
  digitalWrite(SELECT, HIGH);
  SPI.endTransaction();
}

static void write(uint8_t reg, uint8_t value) { transfer(reg, &value, 1); }

static uint8_t read(uint8_t reg) {
  uint8_t value = 0;
  transfer(reg | READ, &value, 1);
  return value;
}

static bool begin() {
  if (read(WHO_AM_I) != 0x7B) return false;
  write(CTRL3_C, BDU_IF_INC);
  write(FIFO_CTRL3, BDR_XL_26667);
  write(FIFO_CTRL4, BYPASS);
  write(CTRL1_XL, XL_EN_16_G);
  write(FIFO_CTRL4, CONTINUOUS);
  return read(CTRL1_XL) == XL_EN_16_G && read(FIFO_CTRL4) == CONTINUOUS;
}

// Samples in so much time, without 32 bits running over: a period is 37.5 µs.
static uint32_t samples(uint32_t us) { return us / 75 * 2 + (us % 75 * 2 + 37) / 75; }

// False when the sensor is no longer what it was.
static bool take(uint32_t now_us) {
  uint8_t raw[SIZE * AT_ONCE] = {0, 0};
  transfer(FIFO_STATUS1 | READ, raw, 2);
  uint16_t waits = (uint16_t)((uint16_t)(raw[1] & DIFF_FIFO_HIGH) << 8 | raw[0]);
  if (raw[0] == 0xFF && raw[1] == 0xFF) return false;  // nobody drives the line
  if ((raw[1] & OVR_LATCHED) && samples(now_us - newest_us) > waits) amiss_skip(&frames, samples(now_us - newest_us) - waits);
  if (!waits) return now_us - newest_us < SILENT_US;
  uint8_t batch = waits < AT_ONCE ? (uint8_t)waits : AT_ONCE;
  uint16_t room = amiss_room(&frames);  // the others wait in the FIFO
  if (batch > room) batch = (uint8_t)room;
  transfer(FIFO_DATA_OUT_TAG | READ, raw, (size_t)SIZE * batch);  // past 7E it goes on at 78
  // SPI has no answer that says whether somebody is there: a wire that shakes loose reads as ones. So all of it counts when each
  // word has its tag and the sensor is still there after it, and none of it otherwise.
  for (uint8_t i = 0; i < batch; ++i)
    if (raw[SIZE * i] >> 3 != TAG_ACCELEROMETER) return false;
  if (read(WHO_AM_I) != 0x7B) return false;
  for (const uint8_t *at = raw; batch; --batch, at += SIZE) {
    --waits;
    int16_t values[3];
    for (uint8_t axis = 0; axis < 3; ++axis)  // low byte first
      values[axis] = amiss_i16((int16_t)((uint16_t)at[2 + 2 * axis] << 8 | at[1 + 2 * axis]));
    newest_us = now_us - (uint32_t)waits * 75 / 2;
    amiss_add_i16(&frames, values, newest_us);
  }
  return true;
}

void setup() {
  Serial.begin(2000000);
  pinMode(SELECT, OUTPUT);
  digitalWrite(SELECT, HIGH);
  SPI.begin();
  tried_us = micros() - TRY_EVERY_US;
}

void loop() {
  uint32_t now_us = micros();
  amiss_clock(&frames, now_us);
  amiss_pump(&frames, Serial);
  if (ready) {
    ready = take(now_us);
  } else if (now_us - tried_us >= TRY_EVERY_US) {
    tried_us = now_us;
    if (!(ready = begin())) return;
    now_us = micros();
    if (ran) amiss_skip(&frames, samples(now_us - newest_us));  // it was away
    ran = true;
    newest_us = now_us;
  }
}
