// SPI, the controller's side.
#ifndef SPI_H
#define SPI_H

#include <Arduino.h>

enum { LSBFIRST, MSBFIRST };
enum { SPI_MODE0, SPI_MODE1, SPI_MODE2, SPI_MODE3 };

struct SPISettings {
  SPISettings(uint32_t hz, uint8_t order, uint8_t mode) : hz(hz), order(order), mode(mode) {}
  uint32_t hz;
  uint8_t order, mode;
};

class SPIClass {
public:
  void begin();
  void beginTransaction(SPISettings settings);
  void endTransaction();
  uint8_t transfer(uint8_t data);
  void transfer(void *data, size_t size);
};

extern SPIClass SPI;

#endif
