#!/usr/bin/env bash
# Runs the AVX-512 kernels on a machine without AVX-512, under bochs, which emulates a processor with AVX-512.
#
#     tests/native/emulate.sh CHECK_KERNELS [CASES]      the static check_kernels; default 300 cases, 1.5 to 2 minutes
#
# A Debian kernel boots with check_kernels as its only process, whose output arrives over a serial line. When this
# process ends, the kernel panics: it prints the exit code and resets the machine, and bochs stops. All files are in
# build/emulate.
set -euo pipefail

program=$(realpath "${1:?usage: emulate.sh CHECK_KERNELS [CASES]}")
cases=${2:-300}
seconds=1800
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
mkdir -p build/emulate
cd build/emulate

isolinux=/usr/lib/ISOLINUX/isolinux.bin
loader=/usr/lib/syslinux/modules/bios/ldlinux.c32
bios=/usr/share/bochs/BIOS-bochs-latest
vga_bios=/usr/share/bochs/VGABIOS-lgpl-latest
terminal=/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so
for wanted in /usr/bin/{bochs,xorriso,cpio} "$isolinux" "$loader" "$bios" "$vga_bios" "$terminal"; do
  if [[ ! -e $wanted ]]; then
    echo "There is no $wanted. These packages of Debian 12 are needed:" \
      'bochs bochsbios bochs-term vgabios isolinux syslinux-common xorriso cpio' >&2
    exit 1
  fi
done

# The kernel is unpacked from its package; nothing is installed.
if [[ ! -e kernel ]]; then
  rm -rf kernel.part ./*.deb
  package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: //p' | head -n 1)
  apt-get download -q "$package"
  dpkg -x "$package"_*.deb kernel.part
  mv kernel.part kernel
fi

rm -rf root disk serial.log bochs.log
mkdir root disk
cp "$program" root/init
(cd root && echo init | cpio --quiet -o -H newc) >disk/initrd
cp kernel/boot/vmlinuz-* disk/vmlinuz
cp "$isolinux" "$loader" disk/
# clearcpuid: bochs reports a size of the compact save area (xsavec, xsaves) that differs from the size that the kernel
# computes, and the kernel would then disable AVX. Without both features the kernel uses the standard layout. The kernel
# does not know the last two words and passes them to init as arguments.
options='console=ttyS0 clearcpuid=xsavec,xsaves nosmp acpi=off tsc=reliable mitigations=off panic=-1 reboot=t'
cat >disk/isolinux.cfg <<EOF
DEFAULT check
LABEL check
  KERNEL /vmlinuz
  APPEND initrd=/initrd $options avx512 $cases
EOF
xorriso -as mkisofs -quiet -o boot.iso -b isolinux.bin -c boot.cat \
  -no-emul-boot -boot-load-size 4 -boot-info-table disk 2>/dev/null

cat >bochsrc <<EOF
display_library: term
plugin_ctrl: speaker=0
cpu: model=corei7_skylake_x, ips=50000000, reset_on_triple_fault=0
memory: guest=256, host=256
romimage: file=$bios
vgaromimage: file=$vga_bios
ata0-master: type=cdrom, path=boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=serial.log
log: bochs.log
panic: action=fatal
error: action=ignore
EOF
echo continue >commands  # Debian's bochs starts in its debugger
TERM=vt100 timeout "$seconds" bochs -q -f bochsrc -rc commands </dev/null >screen.log 2>&1 || true

touch serial.log
sed -i 's/\r//' serial.log
grep -E '^isa |Kernel panic' serial.log || true
if ! grep -qE "^isa avx512: $cases cases, largest error [0-9.e-]+\$" serial.log ||
  ! grep -q 'Attempted to kill init! exitcode=0x00000000' serial.log; then
  echo "The check failed, or did not end in $seconds s: see serial.log, bochs.log and screen.log in build/emulate." >&2
  exit 1
fi
