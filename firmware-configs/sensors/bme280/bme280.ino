// BME280 → temperature, relative humidity and pressure, once a second. Wiring and settings: README.md beside this file.
//
// Each sample is asked for ("forced mode") on a schedule of micros() that does not drift, and read when the sensor says that
// it is done. In between it sleeps, so it does not warm itself. Names of registers, bits and coefficients are those of the data
// sheet (Bosch, BST-BME280-DS001), and so are the formulas (its chapter 8.1, in floating point).
#include <amiss.h>
#include <amiss_i2c.h>

static const uint8_t ADDRESS = 0x76;  // pin SDO low; 0x77 with it high

static const uint8_t CALIB00 = 0x88;
static const uint8_t DIG_H1 = 0xA1;
static const uint8_t ID = 0xD0;  // reads 60; a BMP280, which looks the same and knows no humidity, 58
static const uint8_t CALIB26 = 0xE1;
static const uint8_t CTRL_HUM = 0xF2;
static const uint8_t STATUS = 0xF3;
static const uint8_t CTRL_MEAS = 0xF4;
static const uint8_t CONFIG = 0xF5;
static const uint8_t PRESS_MSB = 0xF7;  // then temperature and humidity: 8 bytes

static const uint8_t MEASURING = 0x08, IM_UPDATE = 0x01;         // STATUS
static const uint8_t OSRS_H_X1 = 1;                              // CTRL_HUM; holds when CTRL_MEAS is written after it
static const uint8_t OSRS_TP_X4_FORCED = 3 << 5 | 3 << 2 | 1;    // CTRL_MEAS: each the mean of four; one measurement
static const uint8_t FILTER_OFF = 0;                             // CONFIG

static const uint32_t PERIOD_US = 1000000;
static const uint32_t PATIENCE_US = 100000;  // it takes 25 ms at most

AMISS_SENDER(frames, 3, 1, AMISS_FLOAT32, 1);

static struct {
  uint16_t T1, P1;
  int16_t T2, T3, P2, P3, P4, P5, P6, P7, P8, P9, H2, H4, H5;
  uint8_t H1, H3;
  int8_t H6;
} dig;

static bool ready = false, asked = false;
static uint32_t due_us;    // when the next sample is
static uint32_t asked_us;  // when it was asked for

static uint16_t word(const uint8_t *at) { return (uint16_t)((uint16_t)at[1] << 8 | at[0]); }

static bool begin() {
  uint8_t id = 0, status = 0, at[26];
  if (!amiss_i2c_read(ADDRESS, ID, &id, 1) || id != 0x60) return false;
  if (!amiss_i2c_read(ADDRESS, STATUS, &status, 1) || (status & IM_UPDATE)) return false;  // still copies its coefficients
  if (!amiss_i2c_read(ADDRESS, CALIB00, at, 24)) return false;
  dig.T1 = word(at), dig.T2 = (int16_t)word(at + 2), dig.T3 = (int16_t)word(at + 4);
  dig.P1 = word(at + 6);
  int16_t *const p[] = {&dig.P2, &dig.P3, &dig.P4, &dig.P5, &dig.P6, &dig.P7, &dig.P8, &dig.P9};
  for (uint8_t i = 0; i < 8; ++i) *p[i] = (int16_t)word(at + 8 + 2 * i);
  if (!amiss_i2c_read(ADDRESS, DIG_H1, &dig.H1, 1) || !amiss_i2c_read(ADDRESS, CALIB26, at, 7)) return false;
  dig.H2 = (int16_t)word(at);
  dig.H3 = at[2];
  dig.H4 = (int16_t)((int8_t)at[3] * 16 | (at[4] & 15));  // 12 bits each, that share a byte
  dig.H5 = (int16_t)((int8_t)at[5] * 16 | at[4] >> 4);
  dig.H6 = (int8_t)at[6];
  return amiss_i2c_write(ADDRESS, CONFIG, FILTER_OFF);
}

// Values from what is in the registers; NaN for what was not measured (80000 or 8000, says the data sheet).
static void compensate(const uint8_t *raw, float *values) {
  int32_t adc_P = (int32_t)raw[0] << 12 | (int32_t)raw[1] << 4 | raw[2] >> 4;
  int32_t adc_T = (int32_t)raw[3] << 12 | (int32_t)raw[4] << 4 | raw[5] >> 4;
  int32_t adc_H = (int32_t)raw[6] << 8 | raw[7];
  values[0] = values[1] = values[2] = NAN;
  if (adc_T == 0x80000) return;
  double d = adc_T / 16384.0 - dig.T1 / 1024.0, e = adc_T / 131072.0 - dig.T1 / 8192.0;
  double t_fine = d * dig.T2 + e * e * dig.T3;
  values[0] = (float)(t_fine / 5120.0);

  if (adc_H != 0x8000) {
    double h = t_fine - 76800.0;
    h = (adc_H - (dig.H4 * 64.0 + dig.H5 / 16384.0 * h)) *
        (dig.H2 / 65536.0 * (1.0 + dig.H6 / 67108864.0 * h * (1.0 + dig.H3 / 67108864.0 * h)));
    h *= 1.0 - dig.H1 * h / 524288.0;
    values[1] = (float)(h > 100.0 ? 100.0 : h < 0.0 ? 0.0 : h);
  }

  double v = t_fine / 2.0 - 64000.0;
  double w = v * v * dig.P6 / 32768.0 + v * dig.P5 * 2.0;
  w = w / 4.0 + dig.P4 * 65536.0;
  v = (1.0 + (dig.P3 * v * v / 524288.0 + dig.P2 * v) / 524288.0 / 32768.0) * dig.P1;
  if (adc_P == 0x80000 || v == 0.0) return;
  double p = (1048576.0 - adc_P - w / 4096.0) * 6250.0 / v;
  p += (dig.P9 * p * p / 2147483648.0 + p * dig.P8 / 32768.0 + dig.P7) / 16.0;
  values[2] = (float)(p / 100.0);
}

static bool ask() {
  return amiss_i2c_write(ADDRESS, CTRL_HUM, OSRS_H_X1) && amiss_i2c_write(ADDRESS, CTRL_MEAS, OSRS_TP_X4_FORCED);
}

// 1: there are values. 0: not yet. −1: the bus failed, or the sensor takes too long.
static int8_t answer(uint32_t now_us, float *values) {
  uint8_t status, raw[8];
  if (now_us - asked_us > PATIENCE_US || !amiss_i2c_read(ADDRESS, STATUS, &status, 1)) return -1;
  if (status & MEASURING) return 0;
  if (!amiss_i2c_read(ADDRESS, PRESS_MSB, raw, 8)) return -1;
  compensate(raw, values);
  return 1;
}

void setup() {
  Serial.begin(115200);
  amiss_i2c_begin();
  due_us = micros() + 10000;  // it needs 2 ms after power-on
}

void loop() {
  uint32_t now_us = micros();
  amiss_clock(&frames, now_us);
  amiss_pump(&frames, Serial);
  float values[3] = {NAN, NAN, NAN};
  if (asked) {
    if (now_us - asked_us < 2000) return;  // it has not even begun
    int8_t done = answer(now_us, values);
    if (!done) return;
    asked = false;
    ready = done > 0;
    amiss_add_f32(&frames, values, due_us - PERIOD_US);  // missing when it failed: that there is nothing is said, too
  } else if ((int32_t)(now_us - due_us) >= 0) {
    // Somebody else had the processor: what is more than half a period late is over.
    uint32_t late = (now_us - due_us + PERIOD_US / 2) / PERIOD_US;
    amiss_skip(&frames, late);
    due_us += late * PERIOD_US;
    if (late) return;
    due_us += PERIOD_US;
    asked_us = now_us;
    if (!ready) {
      amiss_i2c_again();
      ready = begin();
    }
    asked = ready = ready && ask();
    if (!asked) amiss_add_f32(&frames, values, due_us - PERIOD_US);
  }
}
