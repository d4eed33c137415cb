// A pump's test bed as SKAB's → its eight channels, once a second. Wiring and settings: README.md beside this file.
// MAINS IS DEADLY: read there how current and voltage are measured.
//
// Accelerometers pace themselves and are read out of their FIFOs, one sample in a pass of loop(); the converter is read on a
// schedule of micros(); pulses of the flow meter are counted by an interrupt. What fails is a missing value in its channel, and
// the others go on.
#include <SPI.h>
#include <amiss.h>
#include <amiss_i2c.h>

#if defined(ARDUINO_ARCH_ESP32)
static const uint8_t CURRENT = 36, PRESSURE = 39, NTC = 34, VOLTAGE = 35;  // ADC1: can be read while the radio is on
static const uint8_t FLOW = 27, MAX31855 = 5;
#else
static const uint8_t PRESSURE = A0, NTC = A1, CURRENT = A2, VOLTAGE = A3, FLOW = 2, MAX31855 = 10;
#endif
#ifndef IRAM_ATTR
#define IRAM_ATTR
#endif

static const float VOLT_PER_STEP = 3.3f / 4096;
static const float AMPERE_PER_VOLT = 30.0f;    // SCT-013-030
static const float MAINS_PER_VOLT = 311.0f;    // ZMPT101B, set with its trimmer: 1 V for 311 V
static const float BAR_PER_VOLT = 10.0f / 4 * 1.5f;  // transmitter of 0.5 to 4.5 V for 0 to 10 bar, behind 10 kΩ and 20 kΩ
static const float ZERO_BAR_VOLT = 0.5f / 1.5f;
static const float NTC_B = 3950, NTC_25_OHM = 10000, NTC_ABOVE_OHM = 10000;  // resistor to 3.3 V above the NTC
static const float PULSES_PER_LITRE = 450;     // YF-S201

static const uint32_t PERIOD_US = 1000000;
static const uint32_t SLOT_US = 500;
static const uint8_t SLOW_EVERY = 20;          // slots: pressure and NTC
static const uint32_t LOOK_EVERY_US = 1000;    // at an accelerometer: 800 samples a second come from the two

AMISS_SENDER(frames, 8, 1, AMISS_FLOAT32, 1);

// ADXL345 (Analog Devices, Rev. G), as in ../adxl345.
struct Accelerometer {
  uint8_t address;
  bool ready;
  uint16_t count;
  int32_t sum[3];
  uint32_t squares[3];  // 500 × 2047² fit. Beyond 2047 steps, which are 8 g, the second is missing
  bool beyond;

  bool begin() {
    uint8_t id = 0;
    return amiss_i2c_read(address, 0x00, &id, 1) && id == 0xE5 &&   // DEVID
           amiss_i2c_write(address, 0x2D, 0) &&                     // POWER_CTL: standby
           amiss_i2c_write(address, 0x2C, 0x0C) &&                  // BW_RATE: 400 Hz
           amiss_i2c_write(address, 0x31, 0x08 | 3) &&              // DATA_FORMAT: FULL_RES, ±16 g, 256 steps to a g
           amiss_i2c_write(address, 0x38, 0) &&                     // FIFO_CTL: bypass empties it
           amiss_i2c_write(address, 0x38, 0x80 | 16) &&             // stream
           amiss_i2c_write(address, 0x2D, 0x08);                    // POWER_CTL: measure
  }

  void take() {
    uint8_t entries, raw[6];
    if (!(ready = ready && amiss_i2c_read(address, 0x39, &entries, 1))) return;  // FIFO_STATUS
    if (!(entries & 0x3F)) return;
    if (!(ready = amiss_i2c_read(address, 0x32, raw, 6))) return;  // DATAX0
    ++count;
    for (uint8_t axis = 0; axis < 3; ++axis) {
      int16_t value = (int16_t)((uint16_t)raw[2 * axis + 1] << 8 | raw[2 * axis]);
      if (value > 2047 || value < -2047) beyond = true;
      sum[axis] += value;
      squares[axis] += (uint32_t)((int32_t)value * value);
    }
  }

  // Over the last second, in g.
  float rms() {
    float variance = 0;
    bool known = ready && !beyond && count > 360 && count < 500;
    for (uint8_t axis = 0; axis < 3 && count; ++axis) {
      float mean = (float)sum[axis] / count;
      variance += (float)squares[axis] / count - mean * mean;
      sum[axis] = 0;
      squares[axis] = 0;
    }
    count = 0;
    beyond = false;
    if (!ready) {
      amiss_i2c_again();
      ready = begin();
    }
    return known ? sqrtf(variance > 0 ? variance : 0) / 256 : NAN;
  }
};

// An alternating or a steady voltage at a pin.
struct Analog {
  uint8_t pin;
  uint16_t count;
  int32_t sum;
  uint64_t squares;
  bool stop;

  void take() {
    int16_t raw = (int16_t)analogRead(pin);
    if (raw <= 0 || raw >= 4095) stop = true;
    ++count;
    sum += raw;
    squares += (uint32_t)((int32_t)raw * raw);
  }

  // In volts since the last call: what it is on average, and how much it alternates around that.
  void finish(float *mean, float *rms) {
    *mean = *rms = NAN;
    if (count && !stop) {
      float m = (float)sum / count, variance = (float)((double)squares / count - (double)m * m);
      *mean = m * VOLT_PER_STEP;
      *rms = sqrtf(variance > 0 ? variance : 0) * VOLT_PER_STEP;
    }
    count = 0;
    sum = 0;
    squares = 0;
    stop = false;
  }
};

static Accelerometer motor = {0x53, false, 0, {0, 0, 0}, {0, 0, 0}, false};  // SDO low
static Accelerometer pump = {0x1D, false, 0, {0, 0, 0}, {0, 0, 0}, false};   // SDO high
static Analog pressure = {PRESSURE, 0, 0, 0, false}, ntc = {NTC, 0, 0, 0, false};
static Analog current = {CURRENT, 0, 0, 0, false}, voltage = {VOLTAGE, 0, 0, 0, false};
static volatile uint16_t pulses = 0;
static uint32_t due_us, slot_us, looked_us, counted_us;
static uint8_t slot = 0;

static void IRAM_ATTR count_pulse() { pulses = (uint16_t)(pulses + 1); }

// MAX31855 (Maxim, rev. 5): 32 bits, the fault bit D16, and in D31 to D18 quarters of a degree.
static float thermocouple() {
  uint8_t raw[4] = {0, 0, 0, 0};
  SPI.beginTransaction(SPISettings(4000000, MSBFIRST, SPI_MODE0));
  digitalWrite(MAX31855, LOW);
  SPI.transfer(raw, 4);
  digitalWrite(MAX31855, HIGH);
  SPI.endTransaction();
  bool absent = (raw[0] & raw[1] & raw[2] & raw[3]) == 0xFF || !(raw[0] | raw[1] | raw[2] | raw[3]);
  if (absent || (raw[1] & 0x01)) return NAN;
  return (float)((int16_t)((uint16_t)raw[0] << 8 | (raw[1] & 0xFC)) >> 2) * 0.25f;
}

static float celsius(float volts) {
  float ohm = NTC_ABOVE_OHM * volts / (3.3f - volts);
  return 1 / (1 / 298.15f + logf(ohm / NTC_25_OHM) / NTC_B) - 273.15f;
}

void setup() {
  Serial.begin(115200);
  analogReadResolution(12);
  amiss_i2c_begin();
  pinMode(MAX31855, OUTPUT);
  digitalWrite(MAX31855, HIGH);
  SPI.begin();
  pinMode(FLOW, INPUT_PULLUP);
  attachInterrupt(digitalPinToInterrupt(FLOW), count_pulse, FALLING);
  motor.ready = motor.begin();
  pump.ready = pump.begin();
  slot_us = looked_us = counted_us = micros();
  due_us = slot_us + PERIOD_US;
}

void loop() {
  uint32_t now_us = micros();
  amiss_clock(&frames, now_us);
  amiss_pump(&frames, Serial);
  if ((int32_t)(now_us - slot_us) >= 0) {
    slot_us = now_us - slot_us < SLOT_US ? slot_us + SLOT_US : now_us + SLOT_US;  // late ones are not made up for
    current.take();
    voltage.take();
    if (++slot == SLOW_EVERY) {
      slot = 0;
      pressure.take();
      ntc.take();
    }
  }
  if (now_us - looked_us >= LOOK_EVERY_US) {
    looked_us = now_us;
    motor.take();
    pump.take();
  }
  if ((int32_t)(now_us - due_us) < 0) return;
  // Somebody else had the processor: what is more than half a period late is over.
  uint32_t late = (now_us - due_us + PERIOD_US / 2) / PERIOD_US;
  amiss_skip(&frames, late);
  due_us += late * PERIOD_US;
  if (late) return;
  float values[8], unused, volts;
  values[0] = motor.rms();
  values[1] = pump.rms();
  current.finish(&unused, &values[2]);
  values[2] *= AMPERE_PER_VOLT;
  pressure.finish(&volts, &unused);
  values[3] = (volts - ZERO_BAR_VOLT) * BAR_PER_VOLT;
  ntc.finish(&volts, &unused);
  values[4] = celsius(volts);
  values[5] = thermocouple();
  voltage.finish(&unused, &values[6]);
  values[6] *= MAINS_PER_VOLT;
  noInterrupts();
  uint16_t counted = pulses;
  pulses = 0;
  interrupts();
  values[7] = (float)counted / PULSES_PER_LITRE * 60e6f / (float)(now_us - counted_us);
  counted_us = now_us;
  amiss_add_f32(&frames, values, due_us - PERIOD_US);
  due_us += PERIOD_US;
}
