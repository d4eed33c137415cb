/* Registers over I2C, with an answer to whether it worked: a wire that shakes loose must not be taken for a value. */
#ifndef AMISS_I2C_H
#define AMISS_I2C_H

#include <Arduino.h>
#include <Wire.h>

/* 400 kHz, and no waiting for ever for a device that holds the line.
 *
 * A microcontroller that starts anew in the middle of a byte leaves a sensor that holds SDA low and waits for the rest of its
 * clock: then nothing works until somebody pulls the plug. Nine clocks set it free (UM10204, 3.1.16). */
inline void amiss_i2c_begin() {
  pinMode(SDA, INPUT_PULLUP);
  pinMode(SCL, INPUT_PULLUP);
  for (uint8_t i = 0; i < 9 && digitalRead(SDA) == LOW; ++i) {
    digitalWrite(SCL, LOW);
    pinMode(SCL, OUTPUT);
    delayMicroseconds(5);
    pinMode(SCL, INPUT_PULLUP);
    delayMicroseconds(5);
  }
  Wire.begin();
  Wire.setClock(400000);
#ifdef WIRE_HAS_TIMEOUT /* AVR; other cores have a timeout anyway */
  Wire.setWireTimeout(3000, true);
#endif
}

/* After something went wrong. */
inline void amiss_i2c_again() {
  Wire.end();
  amiss_i2c_begin();
}

inline bool amiss_i2c_write(uint8_t address, uint8_t reg, uint8_t value) {
  Wire.beginTransmission(address);
  Wire.write(reg);
  Wire.write(value);
  return Wire.endTransmission() == 0;
}

/* At most 32 bytes: an Uno's Wire holds no more. */
inline bool amiss_i2c_read(uint8_t address, uint8_t reg, uint8_t *data, uint8_t size) {
  Wire.beginTransmission(address);
  Wire.write(reg);
  if (Wire.endTransmission(false) != 0) return false;
  if (Wire.requestFrom(address, size) != size) return false;
  for (uint8_t i = 0; i < size; ++i) data[i] = (uint8_t)Wire.read();
  return true;
}

#endif
