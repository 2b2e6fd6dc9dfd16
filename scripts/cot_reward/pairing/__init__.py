"""The merger (`run`) makes DPO pairs of judged responses; the audit reads files of pairs."""
