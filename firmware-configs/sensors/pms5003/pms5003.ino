// PMS5003 → fine dust, once a second. Wiring and settings: README.md beside this file.
//
// By itself the sensor sends every 0.2 to 2.3 s, as it thinks fit. Here it is asked ("passive mode") on a schedule of micros()
// that does not drift. Commands and frames are those of its manual (Plantower, PMS5003 series data manual V2.3, appendix I).
#include <amiss.h>

static const uint8_t START1 = 0x42, START2 = 0x4D;
static const uint8_t CHANGE_MODE = 0xE1;  // data 0: passive
static const uint8_t READ_IN_PASSIVE_MODE = 0xE2;
static const uint8_t LENGTH = 28;  // of a frame of values after its four bytes of head: 13 words and a checksum
static const uint8_t WORDS[] = {4, 5, 6, 7};  // Data4 to Data7: PM1.0, PM2.5, PM10 in the atmosphere; > 0.3 um in 0.1 l

static const uint32_t PERIOD_US = 1000000;
static const uint32_t PATIENCE_US = 500000;    // an answer is there after some 50 ms
static const uint32_t WARM_UP_US = 30000000;   // "stable data should be got at least 30 seconds after the sensor wakes up"

AMISS_SENDER(frames, 4, 1, AMISS_FLOAT32, 1);

static uint8_t frame[4 + LENGTH];
static uint8_t filled = 0;
static bool warm = false, asked = false, passive = false;
static uint32_t began_us, due_us, asked_us;

static void command(uint8_t what, uint8_t data) {
  uint8_t bytes[7] = {START1, START2, what, 0, data, 0, 0};
  uint16_t sum = (uint16_t)(START1 + START2 + what + data);
  bytes[5] = (uint8_t)(sum >> 8);
  bytes[6] = (uint8_t)sum;
  Serial1.write(bytes, 7);
}

static uint16_t word(uint8_t number) {  // Data1 is the first; high byte first
  const uint8_t *at = frame + 2 + 2 * number;
  return (uint16_t)((uint16_t)at[0] << 8 | at[1]);
}

// One byte more. True: `frame` is whole and right, and has values.
static bool hear(uint8_t data) {
  if (filled == 1 && data == START1) return false;  // the first of two: this may be the one
  frame[filled++] = data;
  if (frame[0] != START1 || (filled > 1 && frame[1] != START2) || (filled > 2 && frame[2] != 0)) {
    filled = data == START1;
    frame[0] = START1;
    return false;
  }
  if (filled < 4) return false;
  uint8_t length = frame[3];  // of a command's answer it is 4
  if (length > LENGTH || length < 4) filled = 0;
  if (filled < 4 + length) return false;
  filled = 0;
  uint16_t sum = 0;
  for (uint8_t i = 0; i < 2 + length; ++i) sum = (uint16_t)(sum + frame[i]);
  return length == LENGTH && sum == word(LENGTH / 2) && (word(13) & 0xFF) == 0;  // Data13: version and error code
}

void setup() {
  Serial.begin(115200);
#if defined(ARDUINO_ARCH_ESP32)
  Serial1.begin(9600, SERIAL_8N1, 16, 17);  // RX, TX
#else
  Serial1.begin(9600);
#endif
  began_us = due_us = micros();
}

void loop() {
  uint32_t now_us = micros();
  amiss_clock(&frames, now_us);
  amiss_pump(&frames, Serial);
  warm = warm || now_us - began_us >= WARM_UP_US;
  float values[4] = {NAN, NAN, NAN, NAN};
  while (Serial1.available()) {
    if (!hear((uint8_t)Serial1.read()) || !asked) continue;
    asked = false;
    passive = true;
    for (uint8_t i = 0; warm && i < 4; ++i) values[i] = word(WORDS[i]);
    amiss_add_f32(&frames, values, asked_us);
  }
  if (asked && now_us - asked_us >= PATIENCE_US) {
    asked = passive = false;  // maybe it was without power for a moment, and is in active mode again
    amiss_add_f32(&frames, values, asked_us);
  }
  if ((int32_t)(now_us - due_us) >= 0) {
    // Somebody else had the processor: what is more than half a period late is over.
    uint32_t late = (now_us - due_us + PERIOD_US / 2) / PERIOD_US;
    amiss_skip(&frames, late);
    due_us += late * PERIOD_US;
    if (late) return;
    if (!passive) command(CHANGE_MODE, 0);
    command(READ_IN_PASSIVE_MODE, 0);
    asked = true;
    asked_us = due_us;
    due_us += PERIOD_US;
  }
}
