// The very objects of the CommonJS entry, so that both share one gateway (N60).
import main from './main.js'

export const { close, configure, createKiroAdapter, createKiroAdapterClass, createKiroHandler } = main
